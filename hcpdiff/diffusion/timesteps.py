"""Which timesteps are drawn in training, and which are visited in sampling. All run in [0, 1000], large is noisy.

A draw is `f(count, generator, *, settings) -> (count,)`; every one takes `shift` (SD3's shift towards noise) and
`stratified` (one draw from each of `count` equal parts of the density: the loss varies less between batches).
A spacing is `f(num_steps, process, size, *, settings) -> (num_steps,)`, descending; `size` is the picture's (height,
width) in pixels, for those that depend on it.
"""

# Draws give timesteps in [0, 1000] for every process; `Process.snap` makes them ones that it was trained at.
from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process

Positive = Annotated[float, Range(gt=0)]


def uniform(
    count: int, generator: Generator, *, low: float = 0.0, high: float = 1000.0, shift: Positive = 1.0, stratified: bool = False
) -> Tensor:
    """Every timestep in [low, high] alike."""
    u = _quantiles(count, generator, stratified)
    return 1000 * shifted((low + (high - low) * u) / 1000, shift)


def logit_normal(
    count: int, generator: Generator, *, mean: float = 0.0, std: Positive = 1.0, shift: Positive = 1.0, stratified: bool = False
) -> Tensor:
    """The middle more often than the ends: sigmoid(mean + std * normal) (arXiv:2403.03206, section 3.1)."""
    u = _quantiles(count, generator, stratified)
    return 1000 * shifted(torch.sigmoid(mean + std * torch.special.ndtri(u)), shift)


def mode(
    count: int, generator: Generator, *, scale: float = 1.29, shift: Positive = 1.0, stratified: bool = False
) -> Tensor:
    """Heavy tails: 1 - u - scale * (cos^2(pi u / 2) - 1 + u) (arXiv:2403.03206, section 3.1)."""
    u = _quantiles(count, generator, stratified)
    return 1000 * shifted(1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u), shift)


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """SD3's resolution shift of sigma in [0, 1]: shift * sigma / (1 + (shift - 1) * sigma) (arXiv:2403.03206, Eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _quantiles(count: int, generator: Generator, stratified: bool) -> Tensor:
    """(count,) float64 in (0, 1), away from the ends, where densities have infinite quantiles."""
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    if stratified:
        u = (torch.randperm(count, generator=generator) + u) / count
    return u.clamp(1e-7, 1 - 1e-7)


def flow(num_steps: int, process: Process, size: tuple[int, int], *, shift: Positive = 1.0) -> Tensor:
    """Equal steps of sigma, shifted; with shift 3 the timesteps of SD3.

    The last step starts at the shifted smallest training sigma, 1 / 1000, as diffusers' flow-matching schedulers do.
    """
    count = process.num_train_timesteps
    last = shift / count / (1 + (shift - 1) / count)
    return 1000 * shifted(torch.linspace(1, last, num_steps, dtype=torch.float64), shift)


def resolution_shifted(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    pixels_per_token: Annotated[int, Range(ge=1)] = 16,
) -> Tensor:
    """FLUX's dynamic shift: exp(mu), where mu grows from `base_shift` at 256 tokens to `max_shift` at 4096."""
    tokens = size[0] * size[1] / pixels_per_token**2
    mu = base_shift + (max_shift - base_shift) * (tokens - 256) / (4096 - 256)
    return 1000 * shifted(torch.linspace(1, 1 / num_steps, num_steps, dtype=torch.float64), math.exp(mu))


def ddpm(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    spacing: Literal["leading", "trailing", "linspace"] = "leading",
    offset: Annotated[int, Range(ge=0)] = 1,
) -> Tensor:
    """Whole timesteps at equal distances (arXiv:2305.08891, Table 2); `offset` is added to `leading` ones only."""
    count = process.num_train_timesteps
    match spacing:
        case "leading":
            steps = torch.arange(num_steps - 1, -1, -1) * (count // num_steps) + offset
        case "trailing":
            steps = torch.arange(num_steps, 0, -1, dtype=torch.float64).mul(count / num_steps).round() - 1
        case "linspace":
            steps = torch.linspace(count - 1, 0, num_steps, dtype=torch.float64)
    return steps.double().clamp(0, process.max_timestep)


def karras(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    rho: Positive = 7.0,
    sigma_min: Positive | None = None,
    sigma_max: Positive | None = None,
) -> Tensor:
    """Equal steps of noise_level^(1 / rho) (arXiv:2206.00364, Eq. 5), between the process's own ends."""
    low, high = _ends(process, sigma_min, sigma_max)
    roots = torch.linspace(high ** (1 / rho), low ** (1 / rho), num_steps, dtype=torch.float64)
    return process.timesteps_at(roots**rho)


def exponential(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    sigma_min: Positive | None = None,
    sigma_max: Positive | None = None,
) -> Tensor:
    """Equal steps of the logarithm of the noise level."""
    low, high = _ends(process, sigma_min, sigma_max)
    return process.timesteps_at(torch.linspace(math.log(high), math.log(low), num_steps, dtype=torch.float64).exp())


def _ends(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The least and greatest noise level; where the last timestep is pure noise of DDPM, the one before it."""
    ends = torch.tensor([process.min_timestep, process.max_timestep, process.max_timestep - 1], dtype=torch.float64)
    low, high, before = process.noise_level(ends).tolist()
    return sigma_min or low, sigma_max or (before if math.isinf(high) else high)
