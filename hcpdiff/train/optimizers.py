"""Muon for the matrices of a model, AdamW for the rest. Any class of torch.optim works in a config too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hcpdiff.config.ranges import Range

Rate = Annotated[float, Range(ge=0)]


class Muon(Optimizer):
    """Steps of equal strength in all directions of a weight matrix, not mostly in a few (Jordan et al. 2024).

    Pays when a transformer is trained from scratch: fewer steps for the same loss. The momentum of every hidden matrix
    is replaced by the nearest orthogonal matrix and scaled like a step of AdamW (arXiv:2502.16982), so the rates of
    AdamW are a good start. What is no hidden matrix gets AdamW: vectors, convolutions, embeddings, and anything thin,
    such as the factors of a LoRA.

    Args:
        params: parameters or groups.
        lr: of the matrices.
        adamw_ratio: the rest gets this times `lr`.
        momentum: of the matrices, in Nesterov's form.
        betas, eps: of AdamW.
        weight_decay: of the matrices and of the rest, relative to the learning rate as in AdamW.
        min_side: a matrix with a shorter side than this is thin.
        max_aspect: so is one that is longer than this many times its width.
        iterations: of Newton and Schulz's method; fewer are cheaper and less exact.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: Rate = 2e-3,
        adamw_ratio: Rate = 0.5,
        momentum: Annotated[float, Range(ge=0, lt=1)] = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: Annotated[float, Range(gt=0)] = 1e-8,
        weight_decay: Rate = 0.01,
        min_side: Annotated[int, Range(ge=1)] = 64,
        max_aspect: Annotated[float, Range(ge=1)] = 4.0,
        iterations: Annotated[int, Range(ge=1)] = 5,
    ) -> None:
        self.min_side, self.max_aspect, self.iterations = min_side, max_aspect, iterations
        beta1, beta2 = betas
        defaults = {
            "lr": lr,
            "adamw_ratio": adamw_ratio,
            "momentum": momentum,
            "betas": (beta1, beta2),
            "eps": eps,
            "weight_decay": weight_decay,
            "step": 0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in params if self.is_matrix(p)]
            self._muon(matrices, group)
            self._adamw([p for p in params if not self.is_matrix(p)], group)
        return loss

    def is_matrix(self, parameter: Tensor) -> bool:
        """Whether Muon trains this parameter."""
        if parameter.ndim != 2:
            return False
        short, long = sorted(parameter.shape)
        return short >= self.min_side and long <= self.max_aspect * short

    def _muon(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for same in _by_shape(params):
            grads = [p.grad for p in same]
            averages = [self._state(p, "momentum") for p in same]
            torch._foreach_lerp_(averages, grads, 1 - momentum)
            directions = orthogonalise(torch.stack(torch._foreach_lerp(grads, averages, momentum)), self.iterations)
            torch._foreach_mul_(same, 1 - lr * group["weight_decay"])
            torch._foreach_add_(same, list(directions.to(same[0].dtype)), alpha=-lr * 0.2 * max(same[0].shape) ** 0.5)

    def _adamw(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not params:
            return
        (beta1, beta2), lr, step = group["betas"], group["lr"] * group["adamw_ratio"], group["step"]
        grads = [p.grad for p in params]
        means = [self._state(p, "exp_avg") for p in params]
        squares = [self._state(p, "exp_avg_sq") for p in params]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        scales = torch._foreach_div(squares, 1 - beta2**step)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, means, scales, -lr / (1 - beta1**step))

    def _state(self, parameter: nn.Parameter, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(n, rows, columns) to nearly orthogonal matrices with the same singular vectors, in bfloat16.

    Newton and Schulz's iteration with Muon's coefficients: singular values end between about 0.7 and 1.2.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT


def _by_shape(params: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Parameters of one shape together, which then share their products."""
    groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
    for p in params:
        groups[tuple(p.shape)].append(p)
    return groups.values()
