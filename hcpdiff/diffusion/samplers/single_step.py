"""Samplers that remember nothing from one step to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hcpdiff.diffusion.process import Process
from hcpdiff.diffusion.samplers.loop import Callback, Eta, Generators, Predict, fresh_noise, non_negative, path


@torch.no_grad()
def euler(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First-order steps of the ODE: Euler for flow matching (arXiv:2209.03003), DDIM for DDPM (arXiv:2010.02502).

    The arguments of every sampler:

    Args:
        predict: (noisy latents, timestep) -> (clean latents, noise), e.g. `process.split` of a model's prediction.
        latents: (B, C, h, w), noisy to the degree of the first timestep. Their dtype is kept.
        timesteps: (N,), noisiest first; see `hcpdiff.diffusion.timesteps`. After the last one comes the clean end.
        generators: one per row, for samplers that draw fresh noise; the others leave them alone.
        callback: called with (step index, clean latents as estimated at this step).

    Returns:
        Clean latents, (B, C, h, w).
    """
    return _blend(predict, latents, timesteps, process, [0.0] * len(timesteps), generators, callback, "euler")


@torch.no_grad()
def ddim(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
    eta: Eta = 0.0,
) -> Tensor:
    """DDIM, arXiv:2010.02502, Eq. 12 and 16: `euler` with a share `eta` of the ancestral noise; arguments as `euler`.

    Eq. 16 is written in ratios of alpha / sigma, so that it holds for flow matching too.

    Args:
        eta: 0 is deterministic, 1 is DDPM's ancestral sampling.
    """
    alphas, sigmas = path(process, timesteps)
    non_negative("ddim", eta)
    fresh = [min(eta * math.sqrt(1 - (a * s1 / (a1 * s)) ** 2), 1.0) for a, s, a1, s1 in _pairs(alphas, sigmas)]
    return _blend(predict, latents, timesteps, process, fresh, generators, callback, "ddim")


@torch.no_grad()
def euler_ancestral(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
    eta: Eta = 1.0,
) -> Tensor:
    """Euler steps that go down too far and add fresh noise; arguments as `euler`.

    For DDPM this is ancestral sampling as in k-diffusion (arXiv:2006.11239). For flow matching the step goes to
    sigma_down = sigma' (1 + (sigma' / sigma - 1) eta); scaling by alpha' / alpha_down and adding noise then gives the
    level sigma' exactly.

    Args:
        eta: 0 is `euler`; 1 replaces the most noise.
    """
    if process.prediction != "flow":
        return ddim(predict, latents, timesteps, process, generators=generators, callback=callback, eta=eta)
    alphas, sigmas = path(process, timesteps)
    non_negative("euler_ancestral", eta)
    fresh = []
    for _, s, a1, s1 in _pairs(alphas, sigmas):
        down = s1 * max(1 + (s1 / s - 1) * eta, 0.0)
        kept = a1 / (1 - down) * down
        fresh.append(math.sqrt(max(1 - (kept / s1) ** 2, 0.0)) if s1 else 0.0)
    return _blend(predict, latents, timesteps, process, fresh, generators, callback, "euler_ancestral")


@torch.no_grad()
def lcm(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Multistep consistency sampling (arXiv:2310.04378): jump to clean, add fresh noise; arguments as `euler`.

    For models that were distilled to do this in 1 to 8 steps.
    """
    return _blend(predict, latents, timesteps, process, [1.0] * len(timesteps), generators, callback, "lcm")


@torch.no_grad()
def heun(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's second-order steps, arXiv:2206.00364, Algorithm 1; arguments as `euler`.

    Two predictions per step. The last step is first order, and so is one that leaves pure noise of DDPM (alpha 0),
    whose level sigma / alpha is infinite.
    """
    alphas, sigmas = path(process, timesteps)
    levels = [*process.noise_level(timesteps.detach().cpu()).tolist(), 0.0]
    for i in range(len(timesteps)):
        clean, noise = predict(latents, timesteps[i])
        if callback is not None:
            callback(i, clean)
        stepped = alphas[i + 1] * clean + sigmas[i + 1] * noise
        if sigmas[i + 1] == 0 or math.isinf(levels[i]):
            latents = stepped
            continue
        clean_next, _ = predict(stepped, timesteps[i + 1])
        scale, scale_next = sigmas[i] / levels[i], sigmas[i + 1] / levels[i + 1]
        slope = (latents / scale - clean) / levels[i]
        slope_next = (stepped / scale_next - clean_next) / levels[i + 1]
        latents = scale_next * (latents / scale + (levels[i + 1] - levels[i]) * (slope + slope_next) / 2)
    return latents


def _pairs(alphas: list[float], sigmas: list[float]) -> list[tuple[float, float, float, float]]:
    """(alpha, sigma, next alpha, next sigma) of every step."""
    return list(zip(alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:], strict=True))


def _blend(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    fresh: list[float],
    generators: Generators | None,
    callback: Callback | None,
    sampler: str,
) -> Tensor:
    """Steps to alpha' * clean + sigma' * unit noise, of which `fresh` is new and sqrt(1 - fresh^2) predicted."""
    alphas, sigmas = path(process, timesteps)
    for i in range(len(timesteps)):
        clean, noise = predict(latents, timesteps[i])
        if callback is not None:
            callback(i, clean)
        latents = alphas[i + 1] * clean + sigmas[i + 1] * math.sqrt(1 - fresh[i] ** 2) * noise
        if fresh[i] * sigmas[i + 1] > 0:
            latents = latents + sigmas[i + 1] * fresh[i] * fresh_noise(latents, generators, sampler)
    return latents
