"""How far a prediction is from its target: (model_pred, target, timesteps, process) -> unreduced loss, same shape."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process

DeltaSchedule = Literal["constant", "exponential", "snr"]


def mse(model_pred: Tensor, target: Tensor, timesteps: Tensor, process: Process) -> Tensor:
    """Squared error: what the base models were trained with."""
    return (model_pred - target) ** 2


def l1(model_pred: Tensor, target: Tensor, timesteps: Tensor, process: Process) -> Tensor:
    """Absolute error: follows outliers less, gives flatter pictures."""
    return (model_pred - target).abs()


def huber(
    model_pred: Tensor,
    target: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    delta: Annotated[float, Range(gt=0, le=1)] = 0.1,
    schedule: DeltaSchedule = "constant",
) -> Tensor:
    """Pseudo-Huber loss 2 d (sqrt(e^2 + d^2) - d): squared for errors e below d, linear above (arXiv:2403.16728).

    Args:
        delta: d; a schedule reaches it at the noisiest timestep, where outliers should count least.
        schedule: "constant"; "exponential" falls from 1 at timestep 0 to `delta`; "snr" is
            delta + (1 - delta) / (1 + sigma / alpha)^2, also from 1 to `delta`.
    """
    if not 0 < delta <= 1:
        raise ValueError(f"delta: {delta} is not in (0, 1]")
    if schedule == "constant":
        d = torch.full_like(timesteps, delta, dtype=torch.float64)
    elif schedule == "exponential":
        d = delta ** (timesteps.double() / process.num_train_timesteps)
    elif schedule == "snr":
        d = delta + (1 - delta) / (1 + process.snr(timesteps).rsqrt()) ** 2
    else:
        raise ValueError(f"schedule: {schedule!r} is not one of constant, exponential, snr")
    d = d.to(model_pred).view(-1, *[1] * (model_pred.ndim - 1))
    return 2 * d * (((model_pred - target) ** 2 + d**2).sqrt() - d)


def masked(error: Tensor, mask: Tensor, *, normalize: bool = False) -> Tensor:
    """An unreduced loss weighted by a mask.

    Args:
        error: (B, C, h, w).
        mask: (B, 1, H, W), non-negative; averaged down to (h, w) where its size is another.
        normalize: divide by the mean of each row's mask, so that a small masked area trains as strongly as a whole
            image. A row whose mask is empty has loss 0 either way.
    """
    mask = mask.to(error)
    if mask.shape[-2:] != error.shape[-2:]:
        mask = interpolate(mask, error.shape[-2:], mode="area")
    if normalize:
        area = mask.flatten(1).mean(1).view(-1, 1, 1, 1)
        mask = mask / torch.where(area > 0, area, 1)
    return error * mask
