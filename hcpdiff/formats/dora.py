"""DoRA: a change of the direction of a weight's rows or columns, and a magnitude for each (arXiv:2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hcpdiff.formats.changes import AnyChange, Change

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class DoRA(Change):
    """magnitude * V / |V|, where V is the weight with another change (arXiv:2402.09353).

    |V| is a constant for gradients, as in the paper.

    Args:
        magnitude: (out, 1, ...) with the norm of each row, or (1, in, ...) with that of each column.
    """

    NAMES: ClassVar = {"magnitude": "dora_scale"}

    of: AnyChange
    magnitude: Tensor

    @property
    def rank(self) -> int:
        return self.of.rank

    @property
    def scale(self) -> float:
        return self.of.scale

    @property
    def on_input(self) -> bool:
        """Whether the magnitudes are those of columns."""
        return len(self.magnitude) == 1 and self.magnitude.numel() > 1

    @property
    def row_dims(self) -> Mapping[str, int]:
        return {"magnitude": 0}

    def num_rows(self) -> int | None:
        return self.of.num_rows()

    def rows(self, start: int, stop: int) -> Self:
        if self.on_input:
            raise ValueError("a DoRA whose magnitudes are those of columns over the rows of several layers")
        return replace(super().rows(start, stop), of=self.of.rows(start, stop))

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        changed = self.of.applied(weight)
        changed = changed * self.factors(changed)
        return changed if strength == 1 else weight.float() + strength * (changed - weight.float())

    def factors(self, changed: Tensor) -> Tensor:
        """magnitude / |V|, with the dimensions of the weight."""
        norm = norms(changed, on_input=self.on_input).detach()
        return self.magnitude.float().view(norm.shape) / norm.clamp_min(torch.finfo(norm.dtype).eps)

    def applied_bias(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        return self.of.applied_bias(bias, strength)


def norms(weight: Tensor, *, on_input: bool) -> Tensor:
    """Of each row, or each column, with ones for the other dimensions."""
    dims = [d for d in range(weight.ndim) if d != int(on_input)]
    return torch.linalg.vector_norm(weight.float(), dim=dims, keepdim=True)


def with_alpha(change: AnyChange, alpha: float | None) -> AnyChange:
    """The same matrices with another alpha."""
    if isinstance(change, DoRA):
        return replace(change, of=with_alpha(change.of, alpha))
    return replace(change, alpha=alpha)  # pyright: ignore[reportCallIssue]
