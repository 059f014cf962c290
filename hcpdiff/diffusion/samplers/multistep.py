"""Samplers that use earlier predictions: linear multistep and the DPM-Solver++ family. Arguments as `euler`.

The DPM-Solver++ steps are exponential integrators in lambda = log(alpha / sigma). Flow matching, and DDPM with zero
terminal SNR, start at lambda = -inf: from there the formulas become a first-order step by themselves, and a point at
-inf carries no weight in later ones.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process
from hcpdiff.diffusion.samplers.loop import Callback, Eta, Generators, Predict, fresh_noise, non_negative, path


@torch.no_grad()
def lms(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
    order: Annotated[int, Range(ge=1, le=4)] = 4,
) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven steps, as in k-diffusion), up to `order` earlier slopes.

    A step that leaves pure noise of DDPM (alpha 0), whose level sigma / alpha is infinite, is first order.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order: {order} is not in 1 to 4")
    alphas, sigmas = path(process, timesteps)
    levels = [*process.noise_level(timesteps.detach().cpu()).tolist(), 0.0]
    scales = [s / level if level else 1.0 for s, level in zip(sigmas, levels, strict=True)]
    slopes: list[Tensor] = []
    for i in range(len(timesteps)):
        clean, noise = predict(latents, timesteps[i])
        if callback is not None:
            callback(i, clean)
        if math.isinf(levels[i]):
            latents = alphas[i + 1] * clean + sigmas[i + 1] * noise
            continue
        slopes = [(latents / scales[i] - clean) / levels[i], *slopes[: order - 1]]
        weights = _adams_bashforth(levels[i + 1], levels[i::-1][: len(slopes)])
        latents = latents * (scales[i + 1] / scales[i])
        for weight, slope in zip(weights, slopes, strict=True):
            latents = latents + scales[i + 1] * weight * slope
    return latents


@torch.no_grad()
def dpmpp_2m(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), arXiv:2211.01095, Algorithm 2; the last step is first order."""
    return dpmpp_2m_sde(predict, latents, timesteps, process, generators=generators, callback=callback, eta=0.0)


@torch.no_grad()
def dpmpp_2m_sde(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
    eta: Eta = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M), arXiv:2211.01095, section 5 (midpoint form); the last step is first order.

    Args:
        eta: share of fresh noise; 0 is `dpmpp_2m`.
    """
    alphas, sigmas = path(process, timesteps)
    steps = _lambda_steps(alphas, sigmas)
    non_negative("dpmpp_2m_sde", eta)
    previous: Tensor | None = None
    for i, h in enumerate(steps):
        clean, _ = predict(latents, timesteps[i])
        if callback is not None:
            callback(i, clean)
        if sigmas[i + 1] == 0:
            return alphas[i + 1] * clean
        estimate = clean
        if previous is not None:
            estimate = clean + (clean - previous) * (h / steps[i - 1] / 2)
        latents = _kept(sigmas, i, h, eta) * latents - alphas[i + 1] * math.expm1(-h * (1 + eta)) * estimate
        latents = _renoised(latents, sigmas[i + 1], h, eta, generators, "dpmpp_2m_sde")
        previous = clean
    return latents


@torch.no_grad()
def dpmpp_3m_sde(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
    eta: Eta = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(3M): the third-order multistep of k-diffusion, after arXiv:2211.01095; the last step is first.

    Args:
        eta: share of fresh noise; 0 is deterministic.
    """
    alphas, sigmas = path(process, timesteps)
    steps = _lambda_steps(alphas, sigmas)
    non_negative("dpmpp_3m_sde", eta)
    previous: list[Tensor] = []  # newest first
    for i, h in enumerate(steps):
        clean, _ = predict(latents, timesteps[i])
        if callback is not None:
            callback(i, clean)
        if sigmas[i + 1] == 0:
            return alphas[i + 1] * clean
        h_eta = h * (1 + eta)
        change = -math.expm1(-h_eta) * clean
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        if previous:
            slope, curvature = _derivatives(clean, previous, h, steps[:i])
            change = change + phi_2 * slope - (phi_2 / h_eta - 0.5) * curvature
        latents = _kept(sigmas, i, h, eta) * latents + alphas[i + 1] * change
        latents = _renoised(latents, sigmas[i + 1], h, eta, generators, "dpmpp_3m_sde")
        previous = [clean, *previous[:1]]
    return latents


def _derivatives(clean: Tensor, previous: list[Tensor], h: float, earlier: list[float]) -> tuple[Tensor, Tensor]:
    """First and second divided differences of the clean latents in units of the step h, from 2 or 3 points."""
    ratio = earlier[-1] / h
    slope = (clean - previous[0]) / ratio
    if len(previous) == 1:
        return slope, torch.zeros_like(slope)
    older_ratio = earlier[-2] / h
    older = (previous[0] - previous[1]) / older_ratio
    curvature = (slope - older) / (ratio + older_ratio)
    return slope + curvature * ratio, curvature


def _lambda_steps(alphas: list[float], sigmas: list[float]) -> list[float]:
    """The increase of log(alpha / sigma) in every step; infinite from pure noise and to the clean end."""
    lambdas = [
        -math.inf if a == 0 else math.inf if s == 0 else math.log(a / s) for a, s in zip(alphas, sigmas, strict=True)
    ]
    return [after - before for before, after in pairwise(lambdas)]


def _kept(sigmas: list[float], i: int, h: float, eta: float) -> float:
    """How much of the noisy latents stays in step i: sigma' / sigma * exp(-eta h)."""
    return sigmas[i + 1] / sigmas[i] * (math.exp(-eta * h) if eta else 1.0)


def _renoised(
    latents: Tensor, sigma: float, h: float, eta: float, generators: Generators | None, sampler: str
) -> Tensor:
    """Latents with the noise that an SDE step of size h adds."""
    if not eta:
        return latents
    return latents + sigma * math.sqrt(-math.expm1(-2 * eta * h)) * fresh_noise(latents, generators, sampler)


def _adams_bashforth(end: float, nodes: list[float]) -> list[float]:
    """Weights of the slopes at `nodes` (newest first) in the integral from nodes[0] to `end` of their interpolation."""
    start, weights = nodes[0], []
    for j, node in enumerate(nodes):
        others = [
            n - start for k, n in enumerate(nodes) if k != j
        ]  # centred, so that powers of large levels do not cancel
        basis = np.polynomial.Polynomial.fromroots(others) if others else np.polynomial.Polynomial([1.0])
        weights.append(float(basis.integ()(end - start) / basis(node - start)))
    return weights
