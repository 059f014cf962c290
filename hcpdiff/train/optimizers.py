"""Muon for the matrices of a model, AdamW for the rest. Any class of torch.optim works in a config too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

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
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._muon([p for p in params if self.is_matrix(p)], group)
            self._adamw([p for p in params if not self.is_matrix(p)], group)
        return loss

    def is_matrix(self, parameter: Tensor) -> bool:
        """Whether Muon trains this parameter."""
        if parameter.ndim != 2:
            return False
        short, long = sorted(parameter.shape)
        return short >= self.min_side and long <= self.max_aspect * short

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for same in _by_shape(params):
            directions = [self._momentum(p, momentum) for p in same]
            steps = orthogonalise(torch.stack(directions), self.iterations).to(same[0].dtype)
            for p, step in zip(same, steps, strict=True):
                p.mul_(1 - lr * group["weight_decay"]).add_(step, alpha=-lr * 0.2 * max(p.shape) ** 0.5)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient averaged over the steps, in Nesterov's form."""
        state, grad = self.state[parameter], _grad(parameter)
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(grad, 1 - momentum)
        return grad.lerp(average, momentum)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] |= {"step": torch.tensor(0.0)}
                self.state[p] |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        states = [self.state[p] for p in params]
        adamw(
            params,
            [_grad(p) for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"] * group["adamw_ratio"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


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


def _by_shape(params: list[Tensor]) -> Iterable[list[Tensor]]:
    """Parameters of one shape together, which then share their products."""
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for p in params:
        groups[tuple(p.shape)].append(p)
    return groups.values()


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
