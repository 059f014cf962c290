"""Images to latents and back, by diffusers' AutoencoderKL, in the scale that the denoiser is trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from hcpdiff.formats.tensor_files.opening import read_json
from hcpdiff.models.stock import Stock

KIND = Stock("AutoencoderKL", "autoencoders.autoencoder_kl")


def latent_distribution(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of (B, 3, H, W) images in [-1, 1], (B, C, h, w) each."""
    posterior = vae.encode(images.to(vae.dtype)).latent_dist
    scale, shift = scale_and_shift(vae)
    return (posterior.mean - shift) * scale, posterior.std * scale


def decode(vae: Any, latents: Tensor) -> Tensor:
    """(B, C, h, w) latents to (B, 3, H, W) images in [-1, 1]."""
    scale, shift = scale_and_shift(vae)
    return vae.decode(latents.to(vae.dtype) / scale + shift).sample.clamp(-1, 1)


def scale_and_shift(vae: Any) -> tuple[float, float]:
    """The denoiser's latents are (latents - shift) * scale; models without a shift have null or no key for it."""
    return vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0


def downscale(vae: Any) -> int:
    """Pixels per latent cell, per side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def config(folder: Path) -> Any:
    """What a `vae/` folder says of it, as `vae.config` has it."""
    return SimpleNamespace(**read_json(folder / "config.json"))
