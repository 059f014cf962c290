"""How much the loss of a sample counts at its timestep: (timesteps (B,), process) -> weight (B,) float64.

The published weights are for one kind of prediction each. Here every weight is stated for the error of the *clean
latents* and then converted: the same error of the clean latents is that of the prediction times

    sigma / alpha  (epsilon)      sigma  (v_prediction)      1  (sample)      sigma  (flow)

so a squared-error loss of the prediction gets the weight times that factor's square. For epsilon, min-SNR comes out as
min(gamma, snr) / snr; for v_prediction as min(gamma, snr) / (snr + 1); for flow, where latents = noisy_latents -
sigma * pred, as min(gamma, snr) * sigma^2, which is min(gamma * sigma^2, alpha^2).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process

Positive = Annotated[float, Range(gt=0)]


def min_snr(timesteps: Tensor, process: Process, *, gamma: Positive = 5.0) -> Tensor:
    """min(gamma, snr) on clean latents: keeps nearly clean timesteps from dominating (arXiv:2303.09556).

    Args:
        gamma: 5 in the paper; a smaller one gives noisy timesteps, and so composition, more of the training.
    """
    snr, factor = _snr_and_factor(timesteps, process)
    return snr.clamp(max=_positive("gamma", gamma)) * factor


def soft_min_snr(timesteps: Tensor, process: Process, *, gamma: Positive = 5.0) -> Tensor:
    """The same with a smooth corner: gamma * snr / (gamma + snr) on clean latents (arXiv:2401.11605)."""
    snr, factor = _snr_and_factor(timesteps, process)
    return _positive("gamma", gamma) * snr / (gamma + snr) * factor


def debiased(timesteps: Tensor, process: Process) -> Tensor:
    """sqrt(snr) on clean latents, which is 1 / sqrt(snr) on epsilon (arXiv:2310.08442)."""
    snr, factor = _snr_and_factor(timesteps, process)
    return snr.sqrt() * factor


def p2(timesteps: Tensor, process: Process, *, gamma: Positive = 1.0, k: Positive = 1.0) -> Tensor:
    """snr / (k + snr)^gamma on clean latents: less weight where only fine detail is left (arXiv:2204.00227)."""
    snr, factor = _snr_and_factor(timesteps, process)
    return snr / (_positive("k", k) + snr) ** _positive("gamma", gamma) * factor


def sigma_sqrt(timesteps: Tensor, process: Process) -> Tensor:
    """sigma^-2, for flow matching: the error of clean latents counts the same at every timestep (arXiv:2403.03206).

    Raises:
        ValueError: the process is not flow matching.
    """
    return _flow_sigma("sigma_sqrt", timesteps, process) ** -2


def cosmap(timesteps: Tensor, process: Process) -> Tensor:
    """2 / (pi (1 - 2 sigma + 2 sigma^2)), for flow matching: the cosine schedule's density (arXiv:2403.03206, Eq. 21).

    Raises:
        ValueError: the process is not flow matching.
    """
    sigma = _flow_sigma("cosmap", timesteps, process)
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def _snr_and_factor(timesteps: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """snr, and the squared error of the clean latents per squared error of the prediction, each (B,)."""
    alpha, sigma = process.coefficients(timesteps)
    sigma = sigma.clamp(min=1e-6)  # flow reaches 0, where the snr would be infinite and its product with 0 undefined
    snr = (alpha / sigma) ** 2
    match process.prediction:
        case "epsilon":
            return snr, 1 / snr
        case "sample":
            return snr, torch.ones_like(snr)
        case "v_prediction" | "flow":
            return snr, sigma**2


def _flow_sigma(name: str, timesteps: Tensor, process: Process) -> Tensor:
    if process.prediction != "flow":
        raise ValueError(f"{name}: is defined for flow matching, this model predicts {process.prediction}; use min_snr")
    return process.noise_level(timesteps.clamp(min=process.min_timestep))


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"{name}: {value} would stop training; use a number above 0")
    return value
