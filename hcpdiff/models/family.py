"""The one interface between models and everything else: the trainer and the sampler know nothing more of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hcpdiff.diffusion.guidance import Combine, extrapolated
from hcpdiff.diffusion.process import Process
from hcpdiff.types import Conditioning, SizeInfo


@dataclass(frozen=True)
class LatentSpec:
    """The shape of a family's latents."""

    channels: int
    downscale: int  # pixels per latent cell, per side
    multiple_of: int  # image sides must divide by this, in pixels
    max_side: int | None = None  # the longest side that the denoiser can place, in pixels


class ModelFamily(nn.Module, ABC):
    """A base model with its text encoders, its VAE and the diffusion process that it was trained for."""

    architecture: ClassVar[str | None] = None  # what `hcpdiff.formats` calls it; None: files have no names for it
    default_guidance: ClassVar[float] = 5.0  # of pictures whose request names none
    combine: Combine = staticmethod(extrapolated)  # what guidance makes of the two predictions, likewise
    denoiser: nn.Module
    text_encoders: nn.ModuleDict
    vae: nn.Module
    process: Process
    latent: LatentSpec

    @classmethod
    def latent_spec(cls, *args: Any, **kwargs: Any) -> LatentSpec:
        """`latent` of what `from_pretrained` would give for the same arguments, read from configs alone."""
        raise ValueError(f"{cls.__name__} does not say the shape of its latents without its weights")

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """B prompts to a conditioning of batch B. Depends on the text alone, so it can be cached per caption."""

    def with_size(self, conditioning: Conditioning, sizes: Sequence[SizeInfo]) -> Conditioning:
        """Add what the denoiser is told of the image sizes; families that are told nothing return it unchanged."""
        return conditioning

    @abstractmethod
    def latent_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, std) of the latents of (B, 3, H, W) images in [-1, 1], each (B, C, H/downscale, W/downscale)."""

    def encode_image(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to latents scaled for the denoiser: the mean, or with a generator a sample."""
        mean, std = self.latent_distribution(images)
        if generator is None:
            return mean
        return mean + std * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)

    @abstractmethod
    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The raw prediction, same shape and dtype as the latents; `process` says what it means.

        Args:
            noisy_latents: (B, C, h, w).
            timesteps: (B,) in [0, 1000], larger is noisier.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode_image`: latents to (B, 3, H, W) in [-1, 1]."""

    @property
    @abstractmethod
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""

    @property
    def text_settings(self) -> str:
        """What `encode_prompt` depends on besides prompts and weights, for the key of a cache."""
        return ""

    @abstractmethod
    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """Compute activations again in backward instead of keeping them: of all blocks, MLPs, or every n-th block."""

    @abstractmethod
    def save_pretrained(
        self, folder: str | Path, *, dtype: str | torch.dtype | None = None, shard_size: str | int | None = None
    ) -> None:
        """Write a complete model that `from_pretrained` reads.

        Args:
            dtype: of all weights; None leaves each as it is.
            shard_size: the most bytes of a file of weights, such as "5GB"; None writes one for each part.
        """
