"""Stable Diffusion 3 and 3.5: an MMDiT, two CLIP text encoders and, optionally, a T5."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcpdiff.config.ranges import at_least_1
from hcpdiff.diffusion import timesteps
from hcpdiff.diffusion.process import FlowMatching
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.folder import ModelFolder, Part, write
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.sd3.transformer import MMDiT
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text import clip
from hcpdiff.models.text import t5 as t5_encoder
from hcpdiff.models.text.chunks import Tokens, lengths, tokenize, tokenize_whole
from hcpdiff.models.text.reading import Reading
from hcpdiff.models.weights import as_dtype
from hcpdiff.types import Conditioning

PIPELINE = "StableDiffusion3Pipeline"
T5 = "text_encoders.t5"
PARTS = {
    "denoiser": Part("transformer", MMDiT),
    "text_encoders.clip_l": Part("text_encoder", clip, tokenizer="tokenizer"),
    "text_encoders.clip_g": Part("text_encoder_2", clip, tokenizer="tokenizer_2"),
    T5: Part("text_encoder_3", t5_encoder, tokenizer="tokenizer_3"),
    "vae": Part("vae", autoencoder),
}
CLIPS = ("clip_l", "clip_g")
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


class SD3(PretrainedFamily):
    """SD3 medium, SD3.5 medium and SD3.5 large (arXiv:2403.03206).

    Text encoders and VAE stay in eval mode, so that a caption has one conditioning; whether they learn is the caller's.

    Args:
        text_encoders: "clip_l", "clip_g" and perhaps "t5"; `tokenizers` by the same names.
        t5_tokens: how many tokens the T5 gives. Without a T5 the model is shown as many zeros.
        compact_t5: give those zeros as one token that counts for all: the same result, and faster.
        scheduler: settings of the stock scheduler; `shift` sets the default steps of sampling.
        reading: how prompts are read; chunks are those of CLIP, the T5 reads its tokens at once.
    """

    architecture = "sd3"
    denoiser: MMDiT

    def __init__(
        self,
        denoiser: MMDiT,
        text_encoders: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        vae: Any,
        *,
        t5_tokens: int = 256,
        compact_t5: bool = True,
        scheduler: Mapping[str, Any] = SCHEDULER,
        reading: Reading = Reading(),  # noqa: B008 (it is frozen)
    ) -> None:
        super().__init__()
        if t5_tokens < 1:
            raise ValueError(f"t5_tokens: {t5_tokens} is no number of tokens; use 1 or more, usually 256")
        self.denoiser = denoiser  # pyright: ignore[reportIncompatibleVariableOverride]
        self.vae = vae
        self.text_encoders = nn.ModuleDict(dict(text_encoders))
        self.tokenizers = dict(tokenizers)
        self.reading = reading
        self.t5_tokens, self.compact_t5, self.scheduler = t5_tokens, compact_t5, dict(scheduler)
        self.process = FlowMatching()
        self.latent = self._latent_spec(denoiser, vae)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "float32",
        text_dtype: str | torch.dtype | None = None,
        vae_dtype: str | torch.dtype = "float32",
        t5: bool = True,
        t5_tokens: Annotated[int, at_least_1] = 256,
        compact_t5: bool = True,
        emphasis: Literal["none", "webui", "braces"] = "none",
        chunks: Annotated[int, at_least_1] | Literal["auto"] = 1,
        chunk_pooling: Literal["first", "mean"] = "first",
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> SD3:
        """Read a folder of diffusers' StableDiffusion3Pipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, or owner/name.
            revision: of the repository.
            text_dtype: None takes `dtype`.
            t5: read the T5 if the model has one. False saves most of the memory and costs fidelity to long prompts.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky] BREAK`, or "braces", `{red:1.3}`.
                "none" takes every sign as text: tags are full of brackets.
            chunks: how many times 75 tokens of a prompt CLIP reads; "auto" as many as the longest of a batch needs, for
                inference alone. The T5 reads `t5_tokens`, and BREAK is a space to it.
            chunk_pooling: the pooled vector is that of the "first" chunk, or the "mean" of those that have text.
            from_scratch: parts that start from random weights; of these only configs need to be there.
            seed: of these random weights.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            ValueError: a setting is wrong, or weights do not fit their config.
        """
        files = cls._files(path, revision=revision, t5=t5)
        read = files.reader(from_scratch, seed=seed)
        main, text = as_dtype(dtype), as_dtype(text_dtype or dtype)
        return cls(
            read("denoiser", main),
            {name: read(f"text_encoders.{name}", text) for name in files.text_encoders},
            {name: files.tokenizer(f"text_encoders.{name}") for name in files.text_encoders},
            read("vae", as_dtype(vae_dtype)),
            t5_tokens=t5_tokens,
            compact_t5=compact_t5,
            scheduler=files.scheduler(SCHEDULER),
            reading=Reading(emphasis, chunks, chunk_pooling),
        )

    @classmethod
    def _files(cls, path: str | Path, *, revision: str | None, t5: bool, only_configs: bool = False) -> ModelFolder:
        skip = () if t5 else (T5,)
        files = ModelFolder(path, PARTS, pipelines=[PIPELINE], revision=revision, skip=skip, only_configs=only_configs)
        if t5 and (not files.folder(T5).is_dir() or t5_encoder.is_silent(files.folder(T5))):
            del files.parts[T5]
        return files

    @classmethod
    def token_counts(cls, texts: Sequence[str], /, *args: Any, **kwargs: Any) -> dict[str, tuple[list[int], int]]:
        """How long texts are for each text encoder, read from the tokenizers alone.

        Args:
            texts: any number of them; the other arguments are those of `from_pretrained`.

        Returns:
            {encoder: (tokens of each text, those that mark its ends included; how many of them the encoder reads)}
        """
        bound = inspect.signature(cls.from_pretrained).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        reading = Reading(given["emphasis"], given["chunks"], given["chunk_pooling"])
        files, found = cls._configs(*args, **kwargs), {}
        for name in files.text_encoders:
            tokenizer = files.tokenizer(f"text_encoders.{name}")
            limit = given["t5_tokens"] if name == "t5" else reading.limit(tokenizer.model_max_length)
            found[name] = lengths(tokenizer, texts, reading), limit
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a complete folder that `from_pretrained` and stock StableDiffusion3Pipeline.from_pretrained read.

        The stock pipeline insists on a T5, so a silent one stands in for a missing one.
        """
        models = {name: (self.text_encoders[name], self.tokenizers[name]) for name in self.text_encoders}
        if "t5" not in models:
            models["t5"] = t5_encoder.silent(self.denoiser.config.joint_attention_dim)
        parts: dict[str, Any] = {"transformer": self.denoiser, "vae": self.vae, "scheduler": self.scheduler}
        for name, (encoder, tokenizer) in models.items():
            part = PARTS[f"text_encoders.{name}"]
            parts |= {part.folder: encoder, str(part.tokenizer): tokenizer}
        write(Path(folder), PIPELINE, parts, empty=("image_encoder", "feature_extractor"))

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return partial(timesteps.flow, shift=self.scheduler.get("shift", 1.0))

    @property
    def text_settings(self) -> str:
        return f"{list(self.text_encoders)} t5_tokens={self.t5_tokens} compact={self.compact_t5} {self.reading}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """CLIP tokens beside each other, padded to the T5's width, then the T5's tokens; pooled CLIP features."""
        read = self._tokens(prompts)
        features = [
            chunked.encode(read[n], partial(clip.encode, self.text_encoders[n]), pooling=self.reading.pooling)
            for n in CLIPS
        ]
        tokens = torch.cat([tokens for tokens, _ in features], dim=-1)
        pooled = torch.cat([pooled for _, pooled in features], dim=-1)
        tokens = F.pad(tokens, (0, self.denoiser.config.joint_attention_dim - tokens.shape[-1]))
        if "t5" in self.text_encoders:
            long = t5_encoder.encode(self.text_encoders["t5"], read["t5"].ids[:, 0])
            long = chunked.weighted(long, read["t5"].weights)
            return Conditioning(torch.cat([tokens, long.to(tokens.dtype)], dim=1), pooled=pooled)
        if not self.compact_t5:
            return Conditioning(F.pad(tokens, (0, 0, 0, self.t5_tokens)), pooled=pooled)
        mask = F.pad(tokens.new_ones(tokens.shape[:2], dtype=torch.float32), (0, 1), value=self.t5_tokens)
        return Conditioning(F.pad(tokens, (0, 0, 0, 1)), mask, pooled)

    def latent_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled for the denoiser; see `encode_image` for a sample."""
        return autoencoder.latent_distribution(self.vae, images)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted flow, noise - latents, in the dtype of `noisy_latents`."""
        dtype, tokens, pooled = self.denoiser.dtype, conditioning.tokens, conditioning.pooled
        if pooled is None:
            raise ValueError("SD3.denoise: the conditioning has no pooled vector; make it with SD3.encode_prompt")
        flow = self.denoiser(noisy_latents.to(dtype), timesteps, tokens.to(dtype), pooled.to(dtype), conditioning.mask)
        return flow.to(noisy_latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.vae, latents)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `MMDiT.gradient_checkpointing`."""
        self.denoiser.gradient_checkpointing(mode)

    def train(self, mode: bool = True) -> SD3:
        if mode:
            self.reading.check_training()
        super().train(mode)
        self.text_encoders.eval()
        self.vae.eval()
        return self

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tokens]:
        """What each text encoder reads."""
        length = self.tokenizers["clip_l"].model_max_length
        tokens = tokenize({name: (self.tokenizers[name], length) for name in CLIPS}, prompts, self.reading)
        if "t5" in self.text_encoders:
            tokens["t5"] = tokenize_whole(self.tokenizers["t5"], prompts, self.t5_tokens, self.reading)
        encoders: dict[str, Any] = dict(self.text_encoders.items())
        return {
            name: tokens[name].to(encoder.get_input_embeddings().weight.device) for name, encoder in encoders.items()
        }

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        patch = cell * denoiser.config.patch_size
        return LatentSpec(denoiser.config.in_channels, cell, patch, denoiser.config.pos_embed_max_size * patch)
