"""UniPC: a predictor, and a corrector that reuses the prediction of the next step, so that it costs nothing."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.process import Process
from hcpdiff.diffusion.samplers.loop import Callback, Generators, Predict, path


@torch.no_grad()
def unipc(
    predict: Predict,
    latents: Tensor,
    timesteps: Tensor,
    process: Process,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
    order: Annotated[int, Range(ge=1, le=3)] = 2,
) -> Tensor:
    """UniPC with B(h) = exp(h) - 1 on clean latents, arXiv:2302.04867, Algorithms 5 to 8; arguments as `euler`.

    Args:
        order: 1 to 3; the first steps use what there is, the last ones fall back to order 1.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order: {order} is not in 1 to 3")
    alphas, sigmas = path(process, timesteps)
    lambdas = [-math.inf if a == 0 else math.log(a / s) for a, s in zip(alphas[:-1], sigmas[:-1], strict=True)]
    count = len(timesteps)
    history: list[Tensor] = []  # clean latents, newest first
    clean, before, order_before = latents, latents, 0
    for i in range(count):
        clean, _ = predict(latents, timesteps[i])
        if callback is not None:
            callback(i, clean)
        if i == count - 1:
            break
        if history:
            nodes = lambdas[i - 1 :: -1][:order_before]
            latents = _step(before, history, clean, nodes, lambdas[i], alphas[i], sigmas[i] / sigmas[i - 1])
        history = [clean, *history[: order - 1]]
        before, order_before = latents, min(order, len(history), count - i)
        nodes = lambdas[i::-1][:order_before]
        latents = _step(before, history, None, nodes, lambdas[i + 1], alphas[i + 1], sigmas[i + 1] / sigmas[i])
    return alphas[-1] * clean


def _step(
    latents: Tensor,
    history: list[Tensor],
    clean_next: Tensor | None,
    nodes: list[float],
    end: float,
    alpha_next: float,
    sigma_ratio: float,
) -> Tensor:
    """Latents at lambda `end`: a predictor step (UniP), or with `clean_next`, the estimate there, a corrector (UniC).

    Args:
        history: clean latents at `nodes`, newest first.
        nodes: the lambda of this step's start and of earlier steps; -inf (pure noise) only counts as the start.
    """
    nodes = [nodes[0], *(n for n in nodes[1:] if math.isfinite(n))]
    h = end - nodes[0]
    result = sigma_ratio * latents - alpha_next * math.expm1(-h) * history[0]
    ratios = [(n - nodes[0]) / h for n in nodes[1:]]
    others = history[1 : len(nodes)]
    if clean_next is not None:
        ratios, others = [*ratios, 1.0], [*others, clean_next]
    for weight, ratio, other in zip(_weights(ratios, h), ratios, others, strict=True):
        result = result - alpha_next * math.expm1(-h) * weight / ratio * (other - history[0])
    return result


def _weights(ratios: list[float], h: float) -> list[float]:
    """The solution of Eq. 6 for B(h) = exp(h) - 1; one equation is solved by 1/2, as the paper does (after Eq. 10)."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    size = len(ratios)
    phi, factorial, right = math.expm1(-h) / -h - 1, 1.0, []
    for k in range(1, size + 1):
        right.append(phi * factorial / math.expm1(-h))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, size, increasing=True).T, right).tolist()
