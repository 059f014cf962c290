"""Families whose models lie in the folders of diffusers' pipelines."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hcpdiff.diffusion.process import Process
from hcpdiff.formats.tensor_files.dtypes import as_dtype
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec, ModelFamily
from hcpdiff.models.folder import ModelFolder, Part, write
from hcpdiff.models.text.chunks import Tokens, lengths, tokenize, tokenize_whole
from hcpdiff.models.text.reading import Reading

WHOLE = "t5"  # the text encoder that reads prompts whole, in `t5_tokens` tokens, and not in chunks


class PretrainedFamily(ModelFamily):
    """All that a family shares with others: its parts are read, written and counted by the table `parts`.

    A family adds `from_pretrained` with its own settings, what its denoiser is told, and the steps of its sampling.

    Text encoders and VAE stay in eval mode, so that a caption has one conditioning; whether they learn is the caller's.

    Args:
        text_encoders: by the names of `parts`; `tokenizers` too.
        scheduler: settings of the stock scheduler.
        reading: how prompts are read.
        t5_tokens: how many tokens the T5 gives, in families that have one.
    """

    pipeline: ClassVar[str]  # the name of diffusers' class
    parts: ClassVar[Mapping[str, Part]]  # by their path in the family, e.g. "denoiser" and "text_encoders.clip_l"
    empty: ClassVar[Sequence[str]] = ()  # what the stock pipeline has and a model can do without
    stock_scheduler: ClassVar[Mapping[str, Any]]  # for folders that have no scheduler of their own

    def __init__(
        self,
        denoiser: nn.Module,
        text_encoders: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        vae: Any,
        *,
        process: Process,
        scheduler: Mapping[str, Any],
        reading: Reading = Reading(),  # noqa: B008 (it is frozen)
        t5_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if t5_tokens is not None and t5_tokens < 1:
            raise ValueError(f"t5_tokens: {t5_tokens} is no number of tokens; use 1 or more, usually 256")
        self.denoiser = denoiser
        self.vae = vae
        self.text_encoders = nn.ModuleDict(dict(text_encoders))
        self.tokenizers = dict(tokenizers)
        self.t5_tokens = t5_tokens
        self.reading = reading
        self.scheduler = dict(scheduler)
        self.process = process
        self.latent = self._latent_spec(denoiser, vae)
        self.eval()

    @classmethod
    @abstractmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> ModelFamily:
        """Read a model: the settings of the family, and `_read` for what all have."""

    @staticmethod
    @abstractmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        """Of a denoiser and a VAE, with or without weights."""

    @classmethod
    def _files(cls, path: str | Path, *, skip: Collection[str] = (), **options: Any) -> ModelFolder:
        """The model's files; see `ModelFolder`. The arguments that are among those of `from_pretrained` are from it."""
        return ModelFolder(path, cls.parts, pipelines=[cls.pipeline], skip=skip, **options)

    @classmethod
    def _read(
        cls,
        files: ModelFolder,
        *,
        dtype: str | torch.dtype | None,
        text_dtype: str | torch.dtype | None,
        vae_dtype: str | torch.dtype | None,
        from_scratch: Sequence[str],
        seed: int,
    ) -> dict[str, Any]:
        """What every family is made of, by the names of its arguments."""
        read = files.reader(from_scratch, seed=seed)
        text, own, decoded = (_dtype(name) for name in (text_dtype or dtype, dtype, vae_dtype))
        tokenizers = {
            name: files.tokenizer(f"text_encoders.{name}") for name in files.text_encoders
        }  # before what takes long
        return {
            "denoiser": read("denoiser", own),
            "text_encoders": {name: read(f"text_encoders.{name}", text) for name in files.text_encoders},
            "tokenizers": tokenizers,
            "vae": read("vae", decoded),
            "scheduler": files.scheduler(cls.stock_scheduler),
        }

    @classmethod
    def skeleton(cls, part: str, /, *args: Any, **kwargs: Any) -> nn.Module:
        """`part` of what `from_pretrained` would give for the same arguments, on the meta device, without its weights.

        Args:
            part: "denoiser", "vae", "text_encoders" or e.g. "text_encoders.clip_l".
        """
        return cls._configs(*args, **kwargs)[0].skeleton(part)

    @classmethod
    def latent_spec(cls, *args: Any, **kwargs: Any) -> LatentSpec:
        files, _ = cls._configs(*args, **kwargs)
        vae = SimpleNamespace(config=autoencoder.config(files.folder("vae")))  # its layers take seconds to import
        return cls._latent_spec(files.skeleton("denoiser"), vae)

    @classmethod
    def token_counts(cls, texts: Sequence[str], /, *args: Any, **kwargs: Any) -> dict[str, tuple[list[int], int]]:
        """How long texts are for each text encoder, read from the tokenizers alone.

        Args:
            texts: any number of them; the other arguments are those of `from_pretrained`.

        Returns:
            {encoder: (tokens of each text, those that mark its ends included; how many of them the encoder reads)}
        """
        files, given = cls._configs(*args, **kwargs)
        reading = Reading(given.get("emphasis", "none"), given.get("chunks", 1))
        found = {}
        for name in files.text_encoders:
            tokenizer, limit = files.tokenizer(f"text_encoders.{name}"), cls._limit(name, files, given)
            counts = lengths(tokenizer, cls._told(texts, tokenizer, reading), reading)
            found[name] = counts, reading.limit(tokenizer.model_max_length) if limit is None else limit
        return found

    @classmethod
    def _limit(cls, name: str, files: ModelFolder, given: Mapping[str, Any]) -> int | None:
        """How many tokens of a prompt an encoder reads; None: in chunks, of the length of its tokenizer.

        Args:
            given: the arguments of `from_pretrained`, with its defaults.
        """
        return given["t5_tokens"] if name == WHOLE else None

    @classmethod
    def _told(cls, prompts: Sequence[str], tokenizer: Any, reading: Reading) -> list[str]:
        """Prompts as the tokenizer gets them."""
        return list(prompts)

    @classmethod
    def _configs(cls, *args: Any, **kwargs: Any) -> tuple[ModelFolder, dict[str, Any]]:
        """The folder that `from_pretrained` would read for these arguments, for its configs; and all its arguments."""
        given = inspect.signature(cls.from_pretrained).bind(*args, **kwargs)
        given.apply_defaults()
        wanted = {*inspect.signature(cls._files).parameters, "revision", "configs"}
        files = cls._files(**{k: v for k, v in given.arguments.items() if k in wanted}, only_configs=True)
        return files, given.arguments

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        shard_size: str | int | None = None,
        weights: bool = True,
    ) -> None:
        """Write a complete folder that `from_pretrained` and the stock pipeline read.

        Args:
            dtype: of all weights; None leaves each as it is.
            shard_size: the most bytes of a file of weights, such as "5GB"; None writes one for each part.
            weights: False writes all but the weights, as it goes beside a single file.

        Raises:
            ValueError: a setting is wrong.
        """
        options = {"dtype": _dtype(dtype), "shard_size": shard_size, "weights": weights}
        folder, parts = Path(folder).expanduser(), self._written()
        write(folder, self.pipeline, parts, empty=self.empty, settings=self.pipeline_settings, **options)

    def _written(self) -> dict[str, Any]:
        """{folder of diffusers' layout: what lies in it}"""
        models: dict[str, Any] = {"scheduler": self.scheduler}
        for path, part in self.parts.items():
            _, _, name = path.rpartition("text_encoders.")
            if part.tokenizer is None:
                models[part.folder] = self.get_submodule(path)
            elif name in self.text_encoders:
                models |= {part.folder: self.text_encoders[name], part.tokenizer: self.tokenizers[name]}
        return models

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        """Settings of the stock pipeline itself."""
        return {}

    def latent_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled for the denoiser; see `encode_image` for a sample."""
        return autoencoder.latent_distribution(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.vae, latents)

    def train(self, mode: bool = True) -> PretrainedFamily:
        if mode:
            self.reading.check_training()
        super().train(mode)
        self.text_encoders.eval()
        self.vae.eval()
        return self

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tokens]:
        """What each text encoder reads."""
        clips = {name: (t, t.model_max_length) for name, t in self.tokenizers.items() if name != WHOLE}
        tokens = tokenize(clips, prompts, self.reading)
        if WHOLE in self.tokenizers and self.t5_tokens is not None:
            tokens[WHOLE] = tokenize_whole(self.tokenizers[WHOLE], prompts, self.t5_tokens, self.reading)
        devices = {name: next(encoder.parameters()).device for name, encoder in self.text_encoders.items()}
        return {name: tokens[name].to(device) for name, device in devices.items()}


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    return None if name is None else as_dtype(name)
