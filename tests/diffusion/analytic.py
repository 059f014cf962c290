"""Denoisers that are known in closed form, so that samplers can be tested without a trained model."""

from __future__ import annotations

import torch
from torch import Tensor

from hcpdiff.diffusion.process import DDPM, FlowMatching, Process
from hcpdiff.diffusion.samplers.loop import Predict

PROCESSES: dict[str, Process] = {
    "ddpm-epsilon": DDPM("epsilon"),
    "ddpm-v": DDPM("v_prediction"),
    "ddpm-sample": DDPM("sample"),
    "ddpm-v-zero-snr": DDPM("v_prediction", zero_terminal_snr=True),
    "flow": FlowMatching(),
}


def gaussian_data(process: Process, *, mean: float = 0.7, std: float = 0.5) -> Predict:
    """The best prediction where every latent value is normal(mean, std)."""

    def predict(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (float(c) for c in process.coefficients(t.view(1)))
        gain = std**2 * alpha / (std**2 * alpha**2 + sigma**2)
        clean = mean + gain * (latents - alpha * mean)
        return clean, (latents - alpha * clean) / sigma

    return predict


def two_peaks(process: Process) -> Predict:
    """The best prediction where every latent value is near -1 or near 1.5: not linear in the latents."""

    def predict(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (float(c) for c in process.coefficients(t.view(1)))
        std = 0.3
        variance = std**2 * alpha**2 + sigma**2
        peaks = torch.tensor([-1.0, 1.5], dtype=latents.dtype)
        x = latents[..., None]
        share = (-((x - alpha * peaks) ** 2) / (2 * variance)).softmax(-1)
        clean = (share * (peaks + std**2 * alpha / variance * (x - alpha * peaks))).sum(-1)
        return clean, (latents - alpha * clean) / sigma

    return predict


def exact_end(process: Process, latents: Tensor, start: Tensor, *, mean: float = 0.7, std: float = 0.5) -> Tensor:
    """Where the ODE of `gaussian_data` ends: a latent keeps its quantile."""
    alpha, sigma = (float(c) for c in process.coefficients(start.view(1)))
    return mean + std * (latents - alpha * mean) / (std**2 * alpha**2 + sigma**2) ** 0.5


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]
