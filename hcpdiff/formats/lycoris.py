"""LyCORIS' own forms of a change (arXiv:2309.14859): LoHa, LoKr, the whole difference, GLoRA and IA3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hcpdiff.formats.changes import Additive, Change, product, scaled

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class LoHa(Additive):
    """alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), element by element.

    Args:
        w1_a, w2_a: (out, rank); with t1 and t2 (rank, out).
        w1_b, w2_b: (rank, in * k * k); with t1 and t2 (rank, in).
        alpha: None is the rank.
        t1, t2: (rank, rank, k, k) between the two (Tucker's decomposition).
    """

    NAMES: ClassVar = {f"w{i}_{ab}": f"hada_w{i}_{ab}" for i in (1, 2) for ab in "ab"} | {
        "t1": "hada_t1",
        "t2": "hada_t2",
    }

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        return scaled(self.alpha, self.rank)

    @property
    def row_dims(self) -> Mapping[str, int]:
        return dict.fromkeys(("w1_a", "w2_a"), 0 if self.t1 is None else 1)

    def delta(self) -> Tensor:
        return self.scale * product(self.w1_a, self.w1_b, self.t1) * product(self.w2_a, self.w2_b, self.t2)


@dataclass(frozen=True)
class LoKr(Additive):
    """alpha / rank * the Kronecker product of w1 and w2, either whole or a product of rank `rank` itself.

    Where both are whole there is no rank, and the scale is 1 whatever alpha is.

    Args:
        w1: (a, c), or w1_a (a, rank) and w1_b (rank, c), for a weight of a * b rows and c * d columns.
        w2: (b, d, k, k), or w2_a (b, rank) and w2_b (rank, d * k * k); with t2 w2_a (rank, b) and w2_b (rank, d).
        t2: (rank, rank, k, k).
        pieces: the rows (start, stop) of all this that are meant, one after another; empty: all.
    """

    NAMES: ClassVar = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    alpha: float | None = None
    t2: Tensor | None = None
    pieces: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("w1", "w2"):
            pair = getattr(self, f"{name}_a") is not None and getattr(self, f"{name}_b") is not None
            if (getattr(self, name) is None) != pair:
                raise ValueError(f"a LoKr has either {name}, or {name}_a and {name}_b")

    @property
    def rank(self) -> int:
        low = self.w2_b if self.w2_b is not None else self.w1_b
        return 0 if low is None else low.shape[0]

    @property
    def scale(self) -> float:
        return scaled(self.alpha, self.rank) if self.rank else 1.0

    def whole_rows(self) -> int:
        """Without a look at `pieces`."""
        return _rows(self.w1, self.w1_a) * _rows(self.w2, self.w2_a, 0 if self.t2 is None else 1)

    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.pieces) or self.whole_rows()

    def rows(self, start: int, stop: int) -> Self:
        pieces, first = [], 0
        for low, high in self.pieces or ((0, self.whole_rows()),):
            cut = max(low, low + start - first), min(high, low + stop - first)
            first += high - low
            pieces += [cut] if cut[0] < cut[1] else []
        return replace(self, pieces=tuple(pieces))

    def delta(self) -> Tensor:
        w1 = product(self.w1_a, self.w1_b) if self.w1 is None else self.w1.float()
        w2 = product(self.w2_a, self.w2_b, self.t2) if self.w2 is None else self.w2.float()
        whole = self.scale * torch.kron(w1, w2.flatten(1))
        return torch.cat([whole[start:stop] for start, stop in self.pieces]) if self.pieces else whole


@dataclass(frozen=True)
class Full(Additive):
    """The difference itself, of the weight and of the bias; of a norm both are (channels,)."""

    NAMES: ClassVar = {"diff": "diff", "bias": "diff_b"}

    diff: Tensor | None = None
    bias: Tensor | None = None

    @property
    def row_dims(self) -> Mapping[str, int]:
        return {"diff": 0, "bias": 0}

    def delta(self) -> Tensor:
        return torch.zeros(()) if self.diff is None else self.diff.float()

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return weight.float() if self.diff is None else super().applied(weight, strength)

    def applied_bias(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        if self.bias is None:
            return super().applied_bias(bias)
        change = strength * self.bias.float()
        return change if bias is None else bias.float() + change


@dataclass(frozen=True)
class GLoRA(Change):
    """weight + alpha / rank * (weight @ a1 @ a2 + b1 @ b2): GLoRA (arXiv:2306.07967) without biases, as LyCORIS has it.

    Args:
        a1, a2: (in, rank) and (rank, in).
        b1, b2: (out, rank) and (rank, in) or (rank, in, k, k).
    """

    NAMES: ClassVar = {name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2")}

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.a2.shape[0]

    @property
    def scale(self) -> float:
        return scaled(self.alpha, self.rank)

    @property
    def row_dims(self) -> Mapping[str, int]:
        return {"b1": 0}

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        weight = weight.float()
        inside = torch.einsum("oi...,ir->or...", weight, self.a1.float().flatten(1))
        inside = torch.einsum("or...,ri->oi...", inside, self.a2.float().flatten(1))
        return weight + strength * self.scale * (inside + product(self.b1, self.b2).view(weight.shape))


@dataclass(frozen=True)
class IA3(Change):
    """Every row, or with `on_input` every column, times 1 + its number (arXiv:2205.05638).

    Args:
        factors: (out,) or (in,); of a convolution (1, out, 1, 1) or (1, in, 1, 1).
    """

    NAMES: ClassVar = {"factors": "weight"}

    factors: Tensor
    on_input: bool = False

    @property
    def row_dims(self) -> Mapping[str, int]:
        return {} if self.on_input else {"factors": min(self.factors.ndim - 1, 1)}

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        shape = [1] * weight.ndim
        shape[int(self.on_input)] = -1
        return weight.float() * (1 + strength * self.factors.float().reshape(shape))


def _rows(whole: Tensor | None, a: Tensor | None, dim: int = 0) -> int:
    if whole is not None:
        return len(whole)
    assert a is not None
    return a.shape[dim]
