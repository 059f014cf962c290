"""Diffusion as one formula for every model: noisy_latents = alpha_t * latents + sigma_t * noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
BetaSchedule = Literal["scaled_linear", "linear", "squaredcos"]


class Process(ABC):
    """How latents turn into noise, and what a model of this process predicts.

    Args:
        prediction: what the denoiser returns: the noise ("epsilon"), alpha * noise - sigma * latents ("v_prediction",
            arXiv:2202.00512), the latents ("sample"), or noise - latents ("flow", arXiv:2403.03206).
        num_train_timesteps: timesteps run from 0 to this number, larger is noisier.
    """

    prediction: Prediction
    num_train_timesteps: int
    min_timestep: float  # the least noisy timestep that models of this process are trained for
    max_timestep: float  # the noisiest: 999 for DDPM, 1000 for flow

    @abstractmethod
    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each (B,) float64, at `timesteps` (B,), which need not be whole numbers."""

    @abstractmethod
    def noise_level(self, timesteps: Tensor) -> Tensor:
        """The coordinate in which published samplers step, (B,) float64: sigma / alpha for DDPM, sigma for flow.

        With c = sigma / noise_level, noisy_latents / c changes at the rate (noisy_latents / c - latents) / noise_level.
        """

    @abstractmethod
    def timesteps_at(self, noise_levels: Tensor) -> Tensor:
        """The timesteps of these noise levels, (B,) float64; inverse of `noise_level`."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents, (B, C, h, w), of `latents` at `timesteps` (B,)."""
        alpha, sigma = self._for_each_row(timesteps, latents)
        return (alpha * latents + sigma * noise).to(latents.dtype)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should return for these latents, noise and timesteps.

        Args:
            latents: clean latents, (B, C, h, w), scaled for the denoiser.
            noise: the noise that `add_noise` was given.
            timesteps: (B,), larger is noisier; at most `max_timestep`.
        """
        match self.prediction:
            case "epsilon":
                return noise
            case "sample":
                return latents
            case "flow":
                return noise - latents
            case "v_prediction":
                alpha, sigma = self._for_each_row(timesteps, latents)
                return (alpha * noise - sigma * latents).to(latents.dtype)

    def split(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Read a prediction as (clean latents, noise), in the dtype of `noisy_latents`; inverse of `target`."""
        dtype = noisy_latents.dtype
        alpha, sigma = self._for_each_row(timesteps, noisy_latents)
        x, pred = noisy_latents.to(alpha.dtype), model_pred.to(alpha.dtype)
        match self.prediction:
            case "epsilon":
                clean, noise = (x - sigma * pred) / alpha, pred
            case "sample":
                clean, noise = pred, (x - alpha * pred) / sigma
            case "flow":
                clean, noise = x - sigma * pred, x + alpha * pred  # alpha + sigma = 1
            case "v_prediction":
                clean, noise = alpha * x - sigma * pred, sigma * x + alpha * pred  # alpha^2 + sigma^2 = 1
        return clean.to(dtype), noise.to(dtype)

    def snap(self, timesteps: Tensor) -> Tensor:
        """The trained timesteps next to these, which are drawn from [0, 1000]: DDPM's are whole, flow's continuous."""
        return timesteps

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, (B,) float64."""
        alpha, sigma = self.coefficients(timesteps)
        return (alpha / sigma) ** 2

    def trajectory(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(alphas, sigmas) along a sampling path, each (N + 1,); the last entry is the clean end, (1, 0)."""
        alpha, sigma = self.coefficients(timesteps)
        return torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, sigma.new_zeros(1)])

    def _for_each_row(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) shaped to broadcast over `like` (B, ...); at least float32, so half precision rounds once."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        alpha, sigma = (
            c.to(device=like.device, dtype=dtype).view(-1, *[1] * (like.ndim - 1)) for c in self.coefficients(timesteps)
        )
        return alpha, sigma


class DDPM(Process):
    """The variance-preserving process of Stable Diffusion 1.x, 2.x and XL (arXiv:2006.11239).

    Between two whole timesteps the logarithm of sigma / alpha is interpolated linearly, as samplers with continuous
    noise levels need. Timesteps above 999 count as 999.

    Args:
        prediction: "epsilon" (SD 1.x, SDXL), "v_prediction" (SD 2.x) or "sample".
        schedule: "scaled_linear" (all Stable Diffusion models), "linear" (arXiv:2006.11239), or "squaredcos"
            (arXiv:2102.09672), which takes no `beta_start` and `beta_end`.
        zero_terminal_snr: rescale the schedule so that the last timestep is pure noise (arXiv:2305.08891).

    Raises:
        ValueError: a setting is unknown, out of range, or cannot be combined with another.
    """

    def __init__(
        self,
        prediction: Prediction = "epsilon",
        *,
        schedule: BetaSchedule = "scaled_linear",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        zero_terminal_snr: bool = False,
        num_train_timesteps: int = 1000,
    ) -> None:
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction: {prediction!r} is not one of epsilon, v_prediction, sample")
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps: {num_train_timesteps} is too few; models use 1000")
        if zero_terminal_snr and prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr: a model that predicts epsilon says nothing about the image at its last timestep, "
                "which is pure noise; use prediction v_prediction or sample"
            )
        self.prediction, self.num_train_timesteps = prediction, num_train_timesteps
        self.min_timestep, self.max_timestep = 0.0, float(num_train_timesteps - 1)
        self.zero_terminal_snr = zero_terminal_snr
        alphas = (1 - _betas(schedule, beta_start, beta_end, num_train_timesteps)).cumprod(0).sqrt()
        if zero_terminal_snr:
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        self._alphas = alphas
        self._log_levels = (1 - alphas**2).sqrt().log() - alphas.log()  # log(sigma / alpha); inf at zero terminal SNR
        self._tables: dict[torch.device, Tensor] = {}

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        log_levels = self._table(timesteps.device)
        t = timesteps.double().clamp(self.min_timestep, self.max_timestep)
        low = t.floor().clamp(max=self.max_timestep - 1).long()
        level = torch.lerp(log_levels[low], log_levels[low + 1], t - low).exp()
        alpha = (1 + level**2).rsqrt()
        if self.zero_terminal_snr:  # the last level is infinite, so there alpha itself is interpolated, down to 0
            last = float(self._alphas[-2]) * (self.max_timestep - t)
            alpha = torch.where(t > self.max_timestep - 1, last, alpha)
        return alpha, (1 - alpha**2).sqrt()

    def snap(self, timesteps: Tensor) -> Tensor:
        return timesteps.floor().clamp(0, self.max_timestep)

    def noise_level(self, timesteps: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(timesteps)
        return sigma / alpha

    def timesteps_at(self, noise_levels: Tensor) -> Tensor:
        log_levels = self._table(noise_levels.device)
        wanted = noise_levels.double().log()
        low = (torch.searchsorted(log_levels, wanted) - 1).clamp(0, self.num_train_timesteps - 2)
        weight = (wanted - log_levels[low]) / (log_levels[low + 1] - log_levels[low])
        return low + weight.clamp(0, 1)

    def _table(self, device: torch.device) -> Tensor:
        """log(sigma / alpha) of every whole timestep, copied to each device once."""
        if device not in self._tables:
            self._tables[device] = self._log_levels.nan_to_num(posinf=float(self._log_levels[-2]) + 1).to(device)
        return self._tables[device]


class FlowMatching(Process):
    """Rectified flow, as in SD3 and Flux (arXiv:2403.03206): sigma = timestep / 1000, alpha = 1 - sigma."""

    def __init__(self, num_train_timesteps: int = 1000) -> None:
        self.prediction, self.num_train_timesteps = "flow", num_train_timesteps
        self.min_timestep, self.max_timestep = 1.0, float(num_train_timesteps)

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.noise_level(timesteps)
        return 1 - sigma, sigma

    def noise_level(self, timesteps: Tensor) -> Tensor:
        return timesteps.double() / self.num_train_timesteps

    def timesteps_at(self, noise_levels: Tensor) -> Tensor:
        return noise_levels.double() * self.num_train_timesteps


def _betas(schedule: BetaSchedule, start: float, end: float, count: int) -> Tensor:
    """The noise added at each timestep, (count,) float64."""
    if schedule not in get_args(BetaSchedule):
        raise ValueError(f"schedule: {schedule!r} is not one of {', '.join(get_args(BetaSchedule))}")
    if not 0 < start <= end < 1:
        raise ValueError(f"beta_start: betas from {start} to {end} are no schedule; use 0 < beta_start <= beta_end < 1")
    if schedule == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    remaining = (torch.linspace(0, 1, count + 1, dtype=torch.float64) + 0.008) / 1.008 * (math.pi / 2)
    remaining = remaining.cos() ** 2
    return (1 - remaining[1:] / remaining[:-1]).clamp(max=0.999)
