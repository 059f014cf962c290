"""What the settings of diffusers' schedulers say: the process of a model, and the timesteps that sampling visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from hcpdiff.diffusion import timesteps
from hcpdiff.diffusion.process import DDPM

DYNAMIC = {  # what diffusers takes where a FlowMatchEulerDiscreteScheduler whose shift depends on the size says nothing
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def ddpm(scheduler: Mapping[str, Any]) -> DDPM:
    """The diffusion process that a scheduler's settings describe."""
    schedule = scheduler.get("beta_schedule", "scaled_linear")
    betas = {key: scheduler[key] for key in ("beta_start", "beta_end") if key in scheduler}
    return DDPM(
        scheduler.get("prediction_type", "epsilon"),
        schedule="squaredcos" if schedule == "squaredcos_cap_v2" else schedule,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
        **({} if schedule == "squaredcos_cap_v2" else betas),
    )


def ddpm_spacing(scheduler: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Its timesteps: (num_steps, process, size) -> (num_steps,)."""
    spacing = scheduler.get("timestep_spacing", "leading")
    return partial(timesteps.ddpm, spacing=spacing, offset=scheduler.get("steps_offset", 1))


def flow_spacing(scheduler: Mapping[str, Any], pixels_per_token: int) -> Callable[..., Tensor]:
    """Those of a flow scheduler that starts at pure noise and ends one step before none, shifted by size or not."""
    settings = {**DYNAMIC, "use_dynamic_shifting": False, "shift": 1.0, **scheduler}
    if settings["use_dynamic_shifting"]:
        low, high = settings["base_image_seq_len"], settings["max_image_seq_len"]
        slope = (settings["max_shift"] - settings["base_shift"]) / (high - low)
        least, most = (settings["base_shift"] + slope * (tokens - low) for tokens in (256, 4096))
    else:
        least = most = math.log(settings["shift"])
    shifts = {"base_shift": least, "max_shift": most, "last": settings.get("shift_terminal") or None}
    return partial(timesteps.resolution_shifted, pixels_per_token=pixels_per_token, **shifts)
