"""The one interface between models and everything else: the trainer and the sampler know nothing more of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hcpdiff.diffusion.process import Process
from hcpdiff.types import Conditioning, SizeInfo


@dataclass(frozen=True)
class LatentSpec:
    """The shape of a family's latents."""

    channels: int
    downscale: int  # pixels per latent cell, per side
    multiple_of: int  # image sides must divide by this, in pixels


class ModelFamily(nn.Module, ABC):
    """A base model with its text encoders, its VAE and the diffusion process that it was trained for."""

    denoiser: nn.Module
    text_encoders: nn.ModuleDict
    vae: nn.Module
    process: Process
    latent: LatentSpec

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """B prompts to a conditioning of batch B. Depends on the text alone, so it can be cached per caption."""

    def with_size(self, conditioning: Conditioning, sizes: Sequence[SizeInfo]) -> Conditioning:
        """Add what the denoiser is told of the image sizes; families that are told nothing return it unchanged."""
        return conditioning

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to latents (B, C, H/downscale, W/downscale), scaled for the denoiser."""

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
