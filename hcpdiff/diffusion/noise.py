"""The noise that training adds to latents.

Each function gives the noise once; `Process.add_noise` and `Process.target` must both get that one result. Values are
drawn on the generator's device, so that a CPU generator gives the same noise on every machine.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from hcpdiff.config.ranges import Range


def gaussian(latents: Tensor, generator: Generator) -> Tensor:
    """Independent standard normal noise, with the shape, dtype and device of `latents`."""
    return _normal(latents.shape, generator).to(latents)


def offset(latents: Tensor, generator: Generator, *, strength: Annotated[float, Range(gt=0)] = 0.1) -> Tensor:
    """Gaussian noise plus one random shift per image and channel, so that very dark and bright images can be learned.

    Args:
        latents: (B, C, ...).
        strength: standard deviation of the shift; common values are 0.03 to 0.1.

    Source: N. Guttenberg, "Diffusion with offset noise", 2023.
    """
    if strength <= 0:
        raise ValueError(f"strength: {strength} adds no offset; use a number above 0, or `gaussian`")
    noise = _normal(latents.shape, generator)
    shift = _normal((*latents.shape[:2], *[1] * (latents.ndim - 2)), generator)
    return (noise + strength * shift).to(latents)


def pyramid(
    latents: Tensor,
    generator: Generator,
    *,
    levels: Annotated[int, Range(ge=2)] = 10,
    discount: Annotated[float, Range(gt=0, le=1)] = 0.9,
) -> Tensor:
    """Gaussian noise plus ever coarser noise, scaled back to unit variance per image.

    Level i is drawn at 1 / r^i of the size, with r uniform in [2, 4), enlarged bilinearly and weighted by
    `discount ** i`; levels end where a side would be shorter than one cell.

    Args:
        latents: (B, C, h, w).
        levels: how many sizes at most, the full size included.
        discount: weight of each level relative to the one before; 0.1 to 0.4 is subtle, 0.9 is strong.

    Source: J. Whitaker, "Multi-resolution noise for diffusion model training", 2023.
    """
    if levels < 2:
        raise ValueError(f"levels: {levels} adds nothing to gaussian noise; use 2 or more, or `gaussian`")
    if not 0 < discount <= 1:
        raise ValueError(f"discount: {discount} is not in (0, 1]")
    height, width = latents.shape[-2:]
    noise = _normal(latents.shape, generator)
    for level in range(1, levels):
        ratio = float(2 + 2 * torch.rand((), generator=generator, device=generator.device)) ** level
        if min(height, width) < ratio:
            break
        coarse = _normal((*latents.shape[:2], int(height / ratio), int(width / ratio)), generator)
        noise = noise + discount**level * interpolate(coarse, (height, width), mode="bilinear")
    return (noise / noise.flatten(1).std(1).view(-1, 1, 1, 1)).to(latents)


def _normal(shape: torch.Size | tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
