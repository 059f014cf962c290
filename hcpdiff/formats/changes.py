"""What adapters other than a plain LoRA make of a layer's weight; see `lycoris`, `oft` and `dora`.

Every kind has the two methods of `Update`: `applied` gives a layer's weight with the change, `applied_bias` its bias. A
strength of 0 is the layer as it was and 1 what was trained. In between, an additive kind adds that share of its
difference, and so does DoRA (as ComfyUI has it; LyCORIS' own multiplier leaves the difference itself at full strength);
OFT turns each rotation towards the identity and IA3 each factor towards 1, as LyCORIS does.

All maths is in float32. Weights are (out, in) or (out, in, k, k); a convolution's matrices may also be flat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

from hcpdiff.formats.lora_files import Update

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


@dataclass(frozen=True)
class Change(ABC):
    """What is made of one layer's weight."""

    plain: ClassVar[bool] = False  # whether this is a LoRA
    NAMES: ClassVar[Mapping[str, str]] = {}  # {field: what its tensor is called in files}

    @abstractmethod
    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """`weight` with this change, in float32 and the shape of `weight`."""

    def applied_bias(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        """The same for the layer's bias; None where it has none and gets none."""
        return None if bias is None else bias.float()

    @property
    def rank(self) -> int:
        """0 where there is none."""
        return 0

    @property
    def scale(self) -> float:
        """What the difference is multiplied with, at strength 1."""
        return 1.0

    @property
    def row_dims(self) -> Mapping[str, int]:
        """{field: the dimension of its tensor along which the weight's rows are}."""
        return {}

    def num_rows(self) -> int | None:
        """Of the weight; None where any number is right."""
        for name, dim in self.row_dims.items():
            if (tensor := getattr(self, name)) is not None:
                return tensor.shape[dim]
        return None

    def rows(self, start: int, stop: int) -> Self:
        """The change of these rows of the weight alone.

        Raises:
            ValueError: they depend on the others.
        """
        own = {name: getattr(self, name) for name in self.row_dims}
        cut = {n: t.narrow(self.row_dims[n], start, stop - start).contiguous() for n, t in own.items() if t is not None}
        return replace(self, **cut)


@dataclass(frozen=True)
class Additive(Change):
    """A change that does not depend on the weight."""

    @abstractmethod
    def delta(self) -> Tensor:
        """What is added, as a weight or a flat one."""

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return weight.float() + strength * self.delta().view(weight.shape)


AnyChange = Change | Update
Changes = Mapping[str, AnyChange]  # by layer


def mapped(change: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same change with another tensor for each of its tensors."""
    found = {f.name: getattr(change, f.name) for f in fields(change)}  # pyright: ignore[reportArgumentType]
    new = {name: function(value) for name, value in found.items() if isinstance(value, Tensor)}
    new |= {name: mapped(value, function) for name, value in found.items() if isinstance(value, (Change, Update))}
    return replace(change, **new)  # pyright: ignore[reportArgumentType]


def scaled(alpha: float | None, rank: int) -> float:
    """alpha / rank."""
    return 1.0 if alpha is None else alpha / rank


def product(a: Tensor | None, b: Tensor | None, middle: Tensor | None = None) -> Tensor:
    """a @ b, or with Tucker's middle tensor (rank, rank, k, k) between the two."""
    assert a is not None
    assert b is not None
    if middle is None:
        return a.float().flatten(1) @ b.float().flatten(1)
    return torch.einsum("rs...,ro,si->oi...", middle.float(), a.float(), b.float())
