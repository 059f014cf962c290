"""FLUX.1 dev and schnell: double and single blocks, a CLIP for the prompt as a whole, a T5 for its words."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from hcpdiff.config.ranges import at_least_0, at_least_1
from hcpdiff.diffusion import timesteps
from hcpdiff.diffusion.process import FlowMatching
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.flux.transformer import FluxTransformer
from hcpdiff.models.folder import ModelFolder, Part, write
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.text import clip
from hcpdiff.models.text import t5 as t5_encoder
from hcpdiff.models.text.tokenize import token_ids, token_lengths
from hcpdiff.models.weights import as_dtype
from hcpdiff.types import Conditioning

PIPELINE = "FluxPipeline"
PARTS = {
    "denoiser": Part("transformer", FluxTransformer),
    "text_encoders.clip_l": Part("text_encoder", clip, tokenizer="tokenizer"),
    "text_encoders.t5": Part("text_encoder_2", t5_encoder, tokenizer="tokenizer_2"),
    "vae": Part("vae", autoencoder),
}
SCHEDULER = {  # of dev
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
GUIDANCE = {"embedded_guidance": 3.5, "train_guidance": 1.0}
T5_TOKENS = {True: 512, False: 256}  # with guidance (dev), without (schnell)

Guidance = Annotated[float, at_least_0]


class Flux(PretrainedFamily):
    """FLUX.1 dev and schnell.

    dev is told a guidance scale and imitates guidance at it in one pass: `embedded_guidance` where pictures are made,
    so in eval mode, and `train_guidance` in training mode. It is not the `guidance` of inference, which works beside
    it, runs the model twice and is usually 1. schnell is told nothing and needs few steps.

    Text encoders and VAE stay in eval mode, so that a caption has one conditioning; whether they learn is the caller's.

    Args:
        text_encoders: "clip_l" and "t5"; `tokenizers` by the same names.
        t5_tokens: how many tokens the T5 gives; None: 512 for dev, 256 for schnell.
        scheduler: settings of the stock scheduler: whether the default steps of sampling depend on the size.
    """

    architecture = "flux"
    denoiser: FluxTransformer

    def __init__(
        self,
        denoiser: FluxTransformer,
        text_encoders: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        vae: Any,
        *,
        t5_tokens: int | None = None,
        embedded_guidance: float = GUIDANCE["embedded_guidance"],
        train_guidance: float = GUIDANCE["train_guidance"],
        scheduler: Mapping[str, Any] = SCHEDULER,
    ) -> None:
        super().__init__()
        if t5_tokens is not None and t5_tokens < 1:
            raise ValueError(f"t5_tokens: {t5_tokens} is no number of tokens; use 1 or more, usually 512")
        for key, value in {"embedded_guidance": embedded_guidance, "train_guidance": train_guidance}.items():
            if value < 0:
                raise ValueError(f"{key}: {value} is no guidance scale; use 0 or more, usually {GUIDANCE[key]}")
            if value != GUIDANCE[key] and not denoiser.config.guidance_embeds:
                raise ValueError(f"{key}: this model, like schnell, is told no guidance scale; leave it out")
        self.denoiser = denoiser  # pyright: ignore[reportIncompatibleVariableOverride]
        self.vae = vae
        self.text_encoders = nn.ModuleDict(dict(text_encoders))
        self.tokenizers = dict(tokenizers)
        self.t5_tokens = t5_tokens or T5_TOKENS[denoiser.config.guidance_embeds]
        self.embedded_guidance, self.train_guidance = embedded_guidance, train_guidance
        self.scheduler = dict(scheduler)
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
        t5_tokens: Annotated[int, at_least_1] | None = None,
        embedded_guidance: Guidance = GUIDANCE["embedded_guidance"],
        train_guidance: Guidance = GUIDANCE["train_guidance"],
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> Flux:
        """Read a folder of diffusers' FluxPipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, or owner/name.
            revision: of the repository.
            text_dtype: None takes `dtype`.
            t5_tokens: how many tokens the T5 gives; None: 512 for dev, 256 for schnell.
            embedded_guidance: the guidance scale that dev is told where it makes pictures. schnell is told none.
            train_guidance: the one that it is told in training. 1 is no guidance, and so are pictures as they are; at a
                higher one the model learns to give them where it gave guided ones, and loses its guidance.
            from_scratch: parts that start from random weights; of these only configs need to be there.
            seed: of these random weights.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            ValueError: a setting is wrong, or weights do not fit their config.
        """
        files = cls._files(path, revision=revision)
        read = files.reader(from_scratch, seed=seed)
        main, text = as_dtype(dtype), as_dtype(text_dtype or dtype)
        return cls(
            read("denoiser", main),
            {name: read(f"text_encoders.{name}", text) for name in files.text_encoders},
            {name: files.tokenizer(f"text_encoders.{name}") for name in files.text_encoders},
            read("vae", as_dtype(vae_dtype)),
            t5_tokens=t5_tokens,
            embedded_guidance=embedded_guidance,
            train_guidance=train_guidance,
            scheduler=files.scheduler(SCHEDULER),
        )

    @classmethod
    def _files(cls, path: str | Path, *, revision: str | None, only_configs: bool = False) -> ModelFolder:
        return ModelFolder(path, PARTS, pipelines=[PIPELINE], revision=revision, only_configs=only_configs)

    @classmethod
    def token_counts(cls, texts: Sequence[str], /, *args: Any, **kwargs: Any) -> dict[str, tuple[list[int], int]]:
        """How long texts are for each text encoder, read from the tokenizers alone.

        Args:
            texts: any number of them; the other arguments are those of `from_pretrained`.

        Returns:
            {encoder: (tokens of each text, those that mark its ends included; how many of them the encoder reads)}
        """
        given = inspect.signature(cls.from_pretrained).bind(*args, **kwargs).arguments
        files, found = cls._configs(*args, **kwargs), {}
        for name in files.text_encoders:
            tokenizer = files.tokenizer(f"text_encoders.{name}")
            limit = tokenizer.model_max_length
            if name == "t5":
                denoiser: Any = files.skeleton("denoiser")
                limit = given.get("t5_tokens") or T5_TOKENS[denoiser.config.guidance_embeds]
            found[name] = token_lengths(tokenizer, texts), limit
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a complete folder that `from_pretrained` and stock FluxPipeline.from_pretrained read."""
        parts: dict[str, Any] = {"transformer": self.denoiser, "vae": self.vae, "scheduler": self.scheduler}
        for name, encoder in self.text_encoders.items():
            part = PARTS[f"text_encoders.{name}"]
            parts |= {part.folder: encoder, str(part.tokenizer): self.tokenizers[name]}
        write(Path(folder), PIPELINE, parts, empty=("image_encoder", "feature_extractor"))

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        settings = SCHEDULER | {"use_dynamic_shifting": False, "shift": 1.0} | self.scheduler
        if settings["use_dynamic_shifting"]:
            low, high = settings["base_image_seq_len"], settings["max_image_seq_len"]
            slope = (settings["max_shift"] - settings["base_shift"]) / (high - low)
            least, most = (settings["base_shift"] + slope * (tokens - low) for tokens in (256, 4096))
        else:
            least = most = math.log(settings["shift"])
        pixels = self.latent.multiple_of
        return partial(timesteps.resolution_shifted, base_shift=least, max_shift=most, pixels_per_token=pixels)

    @property
    def text_settings(self) -> str:
        return f"t5_tokens={self.t5_tokens}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """The T5's tokens, and the pooled feature of CLIP."""
        _, pooled = clip.encode(
            self.text_encoders["clip_l"], self._ids("clip_l", prompts, self.tokenizers["clip_l"].model_max_length)
        )
        tokens = t5_encoder.encode(self.text_encoders["t5"], self._ids("t5", prompts, self.t5_tokens))
        return Conditioning(tokens, pooled=pooled)

    def latent_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled for the denoiser; see `encode_image` for a sample."""
        return autoencoder.latent_distribution(self.vae, images)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted flow, noise - latents, in the dtype of `noisy_latents`."""
        dtype, pooled, guidance = self.denoiser.dtype, conditioning.pooled, None
        if pooled is None:
            raise ValueError("Flux.denoise: the conditioning has no pooled vector; make it with Flux.encode_prompt")
        if self.denoiser.config.guidance_embeds:
            scale = self.train_guidance if self.training else self.embedded_guidance
            guidance = timesteps.new_full(timesteps.shape, scale, dtype=torch.float32)
        flow = self.denoiser(
            noisy_latents.to(dtype),
            timesteps,
            conditioning.tokens.to(dtype),
            pooled.to(dtype),
            guidance,
            conditioning.mask,
        )
        return flow.to(noisy_latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.vae, latents)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `FluxTransformer.gradient_checkpointing`."""
        self.denoiser.gradient_checkpointing(mode)

    def train(self, mode: bool = True) -> Flux:
        super().train(mode)
        self.text_encoders.eval()
        self.vae.eval()
        return self

    def _ids(self, name: str, prompts: Sequence[str], length: int) -> Tensor:
        encoder: Any = self.text_encoders[name]
        return token_ids(self.tokenizers[name], prompts, length).to(encoder.get_input_embeddings().weight.device)

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        return LatentSpec(denoiser.config.in_channels // 4, cell, 2 * cell)
