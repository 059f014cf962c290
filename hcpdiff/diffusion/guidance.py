"""Two branches, one batch: classifier-free guidance at inference (arXiv:2207.12598), DreamArtist in training.

Where both branches run, the rows of the batch are `[negative | positive]`. A constant scale of 1 gives the positive
prediction whatever the negative says, so it needs no negative: see `needs_negative`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.types import Conditioning

Denoise = Callable[[Tensor, Tensor, Conditioning], Tensor]
Scale = float | Tensor | Callable[[Tensor], Tensor]
Combine = Callable[[Tensor, Tensor, Any], Tensor]  # (pred_negative, pred_positive, scale) -> prediction


def extrapolated(pred_negative: Tensor, pred_positive: Tensor, scale: float | Tensor) -> Tensor:
    """pred_negative + scale * (pred_positive - pred_negative): classifier-free guidance as most models have it."""
    return pred_negative + scale * (pred_positive - pred_negative)


def norm_kept(
    pred_negative: Tensor, pred_positive: Tensor, scale: float | Tensor, *, patch: Annotated[int, Range(ge=1)] = 2
) -> Tensor:
    """The same, then each patch as long as that of the positive prediction, as Qwen-Image is sampled.

    Guidance then changes where the prediction points, and not how far.

    Args:
        patch: the side of a patch in latent cells.
    """
    pred = extrapolated(pred_negative, pred_positive, scale)
    wanted, found = (F.avg_pool2d(p.float().square().sum(1, keepdim=True), patch).sqrt() for p in (pred_positive, pred))
    ratio = wanted / found.clamp_min(torch.finfo(found.dtype).tiny)
    return pred * ratio.repeat_interleave(patch, -2).repeat_interleave(patch, -1).to(pred.dtype)


def guided(
    denoise: Denoise,
    noisy_latents: Tensor,
    timesteps: Tensor,
    negative: Conditioning | None,
    positive: Conditioning,
    scale: Scale,
    combine: Combine = extrapolated,
) -> Tensor:
    """The predictions for both prompts combined, from one call on a batch of 2B whose negative rows come first.

    Args:
        denoise: (noisy_latents, timesteps, conditioning) -> prediction, e.g. `family.denoise`.
        noisy_latents: (B, C, h, w).
        timesteps: (B,).
        negative: None runs the positive branch alone, which is enough for a constant scale of 1.
        scale: a number, one number per row (B,), or a function of the timesteps such as `linear`.
        combine: how two predictions become one.

    Raises:
        ValueError: `negative` is None and the scale needs it.
    """
    if negative is None:
        if needs_negative(scale):
            raise ValueError(f"guidance: a scale of {scale} needs a negative conditioning; only 1 does without")
        return denoise(noisy_latents, timesteps, positive)
    twice = torch.cat([noisy_latents, noisy_latents])
    both = denoise(twice, torch.cat([timesteps, timesteps]), Conditioning.cat([negative, positive]))
    pred_negative, pred_positive = both.chunk(2)
    factor = scale(timesteps) if callable(scale) else scale
    if isinstance(factor, Tensor):
        factor = factor.to(both).view(-1, *[1] * (both.ndim - 1))
    return combine(pred_negative, pred_positive, factor)


def needs_negative(scale: Scale) -> bool:
    """Whether this scale uses the negative branch: everything but the constant 1."""
    return not isinstance(scale, (int, float)) or scale != 1


def linear(timesteps: Tensor, *, low: float, high: float, max_timestep: float = 1000.0) -> Tensor:
    """Scale (B,) that falls from `high` at the noisiest timestep to `low` at the cleanest, linearly.

    Args:
        max_timestep: the noisiest timestep: 1000 for flow, 999 for DDPM.
    """
    return _between(low, high, _rate(timesteps, max_timestep))


def cos(timesteps: Tensor, *, low: float, high: float, max_timestep: float = 1000.0) -> Tensor:
    """The same, but close to `high` for longer: low + (high - low) * cos((t / max_timestep - 1) * pi / 2)."""
    return _between(low, high, ((_rate(timesteps, max_timestep) - 1) * (math.pi / 2)).cos())


def cos2(timesteps: Tensor, *, low: float, high: float, max_timestep: float = 1000.0) -> Tensor:
    """The same, but close to `low` for longer: low + (high - low) * (1 - cos(t / max_timestep * pi / 2))."""
    return _between(low, high, 1 - (_rate(timesteps, max_timestep) * (math.pi / 2)).cos())


def _rate(timesteps: Tensor, max_timestep: float) -> Tensor:
    return timesteps.to(torch.float32) / max_timestep


def _between(low: float, high: float, share: Tensor) -> Tensor:
    if low == high == 1:
        raise ValueError("guidance: low and high are both 1, which turns guidance off; leave it out, or raise high")
    return low + (high - low) * share
