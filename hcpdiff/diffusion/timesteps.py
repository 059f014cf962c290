"""Which timesteps are drawn in training, and which are visited in sampling. All run in [0, 1000], large is noisy.

A draw is `f(count, generator, *, settings) -> (count,)`, for every process: `Process.snap` makes them timesteps that it
was trained at. Every draw takes

- `shift`: SD3's shift towards noise, above 1 for larger pictures; 1 changes nothing;
- `stratified`: one draw from each of `count` equal parts of the density, in random order, instead of independent ones,
  so that every batch covers the whole range and its loss varies less.

A spacing is `f(num_steps, process, size, *, settings) -> (num_steps,)`, noisiest first; `size` is the picture's
(height, width) in pixels, for those that depend on it. All are float64 on the CPU.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process

Positive = Annotated[float, Range(gt=0)]
Timestep = Annotated[float, Range(ge=0, le=1000)]


def uniform(
    count: int,
    generator: Generator,
    *,
    low: Timestep = 0.0,
    high: Timestep = 1000.0,
    shift: Positive = 1.0,
    stratified: bool = False,
) -> Tensor:
    """Every timestep in [low, high) equally often."""
    if not 0 <= low < high <= 1000:
        raise ValueError(f"low: no timesteps from {low} to {high}; use 0 <= low < high <= 1000")
    u = _quantiles(count, generator, stratified)
    return 1000 * shifted((low + (high - low) * u) / 1000, shift)


def logit_normal(
    count: int,
    generator: Generator,
    *,
    mean: float = 0.0,
    std: Positive = 1.0,
    shift: Positive = 1.0,
    stratified: bool = False,
) -> Tensor:
    """The middle more often than the ends: sigmoid(mean + std * normal) (arXiv:2403.03206, section 3.1).

    Args:
        mean: below 0 prefers clean timesteps, above 0 noisy ones.
        std: a larger one spreads the draws towards both ends.
    """
    if std <= 0:
        raise ValueError(f"std: {std} is no standard deviation; use a number above 0")
    u = _quantiles(count, generator, stratified)
    return 1000 * shifted(torch.sigmoid(mean + std * torch.special.ndtri(u)), shift)


def mode(
    count: int,
    generator: Generator,
    *,
    scale: Annotated[float, Range(ge=-1, le=1.75)] = 1.29,
    shift: Positive = 1.0,
    stratified: bool = False,
) -> Tensor:
    """Heavy tails: 1 - u - scale * (cos^2(pi u / 2) - 1 + u) (arXiv:2403.03206, section 3.1).

    Args:
        scale: above 0 prefers the middle, below 0 the ends; from -1 to 2 / (pi - 2), about 1.75.
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"scale: {scale} gives no density; use -1 to 1.75")
    u = _quantiles(count, generator, stratified)
    return 1000 * shifted(1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u), shift)


def flow(num_steps: int, process: Process, size: tuple[int, int], *, shift: Positive = 1.0) -> Tensor:
    """Equal steps of sigma, shifted; with shift 3 the timesteps of SD3.

    The last step starts at the shifted smallest training sigma, 1 / 1000, as diffusers' flow-matching schedulers do.
    """
    last = shifted(torch.tensor(1 / process.num_train_timesteps, dtype=torch.float64), shift)
    return _visited(shifted(_steps(1.0, float(last), num_steps), shift), process)


def resolution_shifted(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    pixels_per_token: Annotated[int, Range(ge=1)] = 16,
    last: Annotated[float, Range(gt=0, lt=1)] | None = None,
) -> Tensor:
    """FLUX's dynamic shift: exp(mu), where mu grows from `base_shift` at 256 tokens to `max_shift` at 4096.

    Args:
        pixels_per_token: side of the square of pixels that is one token of the transformer.
        last: all are stretched until the last of several steps starts at this sigma; Qwen-Image has 0.02.
    """
    if pixels_per_token < 1:
        raise ValueError(f"pixels_per_token: {pixels_per_token} is no number of pixels; use 1 or more")
    if last is not None and not 0 < last < 1:
        raise ValueError(f"last: {last} is no sigma to end at; use one between 0 and 1")
    tokens = size[0] * size[1] / pixels_per_token**2
    mu = base_shift + (max_shift - base_shift) * (tokens - 256) / (4096 - 256)
    sigmas = shifted(_steps(1.0, 1 / _checked(num_steps), num_steps), math.exp(mu))
    if last is not None and num_steps > 1:
        sigmas = 1 - (1 - sigmas) * (1 - last) / (1 - sigmas[-1])
    return _visited(sigmas, process)


def ddpm(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    spacing: Literal["leading", "trailing", "linspace"] = "leading",
    offset: Annotated[int, Range(ge=0)] = 1,
) -> Tensor:
    """Whole timesteps at equal distances, for DDPM (arXiv:2305.08891, Table 2).

    Args:
        spacing: "leading", the default of SD 1.x and SDXL, starts below pure noise; "trailing" starts at it, as models
            with zero terminal SNR need; "linspace" visits both ends.
        offset: added to `leading` timesteps only.
    """
    count = process.num_train_timesteps
    if process.prediction == "flow":
        raise ValueError("spacing: ddpm is for models with whole timesteps, this one is flow matching; use flow")
    if _checked(num_steps) > count:
        raise ValueError(f"steps: {num_steps} is more than the {count} timesteps there are")
    if spacing == "leading":
        timesteps = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64) * (count // num_steps) + offset
    elif spacing == "trailing":
        timesteps = torch.arange(num_steps, 0, -1, dtype=torch.float64).mul(count / num_steps).round() - 1
    elif spacing == "linspace":
        timesteps = _steps(process.max_timestep, 0.0, num_steps).round()
    else:
        raise ValueError(f"spacing: {spacing!r} is not one of leading, trailing, linspace")
    if offset < 0 or timesteps[0] > process.max_timestep:
        raise ValueError(f"offset: {num_steps} steps and an offset of {offset} leave [0, {process.max_timestep:g}]")
    return timesteps


def karras(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    rho: Positive = 7.0,
    sigma_min: Positive | None = None,
    sigma_max: Positive | None = None,
) -> Tensor:
    """Equal steps of noise_level^(1 / rho) (arXiv:2206.00364, Eq. 5): shorter ones near the clean end.

    Args:
        sigma_min, sigma_max: the noise levels at the ends, sigma / alpha for DDPM and sigma for flow; default: the
            process's own, and the greatest finite one where it ends in pure noise.
    """
    if rho <= 0:
        raise ValueError(f"rho: {rho} is not above 0; the paper has 7")
    low, high = _ends(process, sigma_min, sigma_max)
    return process.timesteps_at(_steps(high ** (1 / rho), low ** (1 / rho), num_steps) ** rho)


def exponential(
    num_steps: int,
    process: Process,
    size: tuple[int, int],
    *,
    sigma_min: Positive | None = None,
    sigma_max: Positive | None = None,
) -> Tensor:
    """Equal steps of the logarithm of the noise level; the arguments are those of `karras`."""
    low, high = _ends(process, sigma_min, sigma_max)
    return process.timesteps_at(_steps(math.log(high), math.log(low), num_steps).exp())


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """SD3's shift of sigma in [0, 1]: shift * sigma / (1 + (shift - 1) * sigma) (arXiv:2403.03206, Eq. 23)."""
    if shift <= 0:
        raise ValueError(f"shift: {shift} is not above 0; 1 changes nothing, SD3 has 3")
    return shift * sigma / (1 + (shift - 1) * sigma)


def _quantiles(count: int, generator: Generator, stratified: bool) -> Tensor:
    """(count,) float64 in (0, 1), away from the ends, where densities have infinite quantiles."""
    u = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    if stratified:
        u = (torch.randperm(count, generator=generator, device=generator.device).cpu() + u) / count
    return u.clamp(1e-7, 1 - 1e-7)


def _steps(start: float, end: float, num_steps: int) -> Tensor:
    return torch.linspace(start, end, _checked(num_steps), dtype=torch.float64)


def _checked(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"steps: {num_steps} is no number of steps; use 1 or more")
    return num_steps


def _visited(sigmas: Tensor, process: Process) -> Tensor:
    """Shares of the whole range as timesteps; DDPM's end below 1000."""
    return process.max_timestep * sigmas


def _ends(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The least and greatest noise level; where the last timestep is pure noise of DDPM, the one before it."""
    ends = torch.tensor([process.min_timestep, process.max_timestep, process.max_timestep - 1], dtype=torch.float64)
    least, greatest, before = process.noise_level(ends).tolist()
    greatest = before if math.isinf(greatest) else greatest
    low = least if sigma_min is None else sigma_min
    high = greatest if sigma_max is None else sigma_max
    if not 0 < low < high:
        raise ValueError(f"sigma_min: no noise levels from {low:.4g} to {high:.4g}; use 0 < sigma_min < sigma_max")
    if high > greatest:
        raise ValueError(f"sigma_max: {high} is noisier than this process gets, which is {greatest:.4g}")
    return low, high
