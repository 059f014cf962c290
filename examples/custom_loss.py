"""A loss and a weighting of your own: plain functions.

    python examples/custom_loss.py

In a config, name the functions, and pass `--trust custom_loss`. What follows the `*` is set there:

    train: {loss: {_target_: custom_loss.log_cosh, sharpness: 4}, weighting: {_target_: custom_loss.middle_first}}
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hcpdiff.diffusion.process import FlowMatching, Process


def log_cosh(
    model_pred: Tensor, target: Tensor, timesteps: Tensor, process: Process, *, sharpness: float = 4.0
) -> Tensor:
    """Squared error for small errors, absolute error for large ones, smooth in between; the shape of `target`."""
    error = sharpness * (model_pred - target).abs()
    return 2 / sharpness**2 * (error + F.softplus(-2 * error) - math.log(2))


def middle_first(timesteps: Tensor, process: Process, *, edge: float = 0.2) -> Tensor:
    """Weight (B,): 1 in the middle of the timesteps, `edge` at both ends."""
    alpha, sigma = process.coefficients(timesteps)
    return edge + (1 - edge) * 4 * alpha * sigma / (alpha + sigma) ** 2


if __name__ == "__main__":
    process, timesteps = FlowMatching(), torch.tensor([0.0, 500.0, 1000.0])
    errors = torch.tensor([0.01, 0.1, 1.0])
    print("loss:  ", log_cosh(errors, torch.zeros(3), timesteps, process).tolist())
    print("square:", (errors**2).tolist())
    print("weight:", middle_first(timesteps, process).tolist())
