"""What all samplers share: the shape of their arguments, coefficients as plain numbers, fresh noise per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Generator, Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (noisy latents, timestep) -> (clean latents, noise)
Callback = Callable[[int, Tensor], None]  # (step index, clean latents as estimated there), for previews
Generators = Sequence[Generator]
Eta = Annotated[float, Range(ge=0)]  # share of fresh noise


def path(process: Process, timesteps: Tensor) -> tuple[list[float], list[float]]:
    """(alphas, sigmas) at the timesteps and at the clean end; plain numbers, so that no step waits for a device."""
    alphas, sigmas = process.trajectory(timesteps.detach().cpu().double())
    return alphas.tolist(), sigmas.tolist()


def fresh_noise(latents: Tensor, generators: Generators | None, sampler: str) -> Tensor:
    """Standard normal noise like `latents`; each row comes from its own generator, so it is the same in any batch.

    Raises:
        ValueError: `generators` is not one per row.
    """
    if generators is None or len(generators) != len(latents):
        given = "none" if generators is None else str(len(generators))
        raise ValueError(f"{sampler}: draws noise and needs one generator for each of {len(latents)} rows, not {given}")
    rows = [torch.randn(latents.shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(latents, non_blocking=True)


def non_negative(sampler: str, eta: float) -> float:
    """`eta`, or a ValueError if it is below zero."""
    if eta < 0:
        raise ValueError(f"eta: {eta} is not a share of fresh noise; {sampler} takes 0 (none) or more, usually 1")
    return eta
