"""Where the tensors of diffusers' layers lie in a file of the original code, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Source:
    """The original of one tensor.

    Args:
        rows: from where to where it lies in a tensor that holds several; None: it is the whole.
        change: "transposed"; "halves": shift and scale are swapped; "conv": it is the 1 x 1 convolution of this matrix.
    """

    key: str
    rows: tuple[int, int] | None = None
    change: Literal["none", "transposed", "halves", "conv"] = "none"

    def take(self, rows: Tensor) -> Tensor:
        """The tensor of diffusers from the original's `rows`, or from all of it; often a view."""
        return rows.flatten(1) if self.change == "conv" else self._changed(rows)

    def give(self, tensor: Tensor) -> Tensor:
        """Inverse of `take`: the original, or these rows of it."""
        return tensor[:, :, None, None] if self.change == "conv" else self._changed(tensor)

    def _changed(self, tensor: Tensor) -> Tensor:
        if self.change == "transposed":
            return tensor.T
        return tensor.roll(len(tensor) // 2, 0) if self.change == "halves" else tensor


Table = Mapping[str, Source]  # by diffusers' key
MakeTable = Callable[[Shapes], Table]  # from the shapes of diffusers' tensors


def originals(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """What makes each tensor of the original layout, by its key there."""
    parts: dict[str, dict[int, str]] = {}
    for key, source in table.items():
        parts.setdefault(source.key, {})[source.rows[0] if source.rows else 0] = key

    def make(rows: Mapping[int, str]) -> Tensor:
        given = [table[rows[start]].give(tensors[rows[start]]) for start in sorted(rows)]
        return given[0] if len(given) == 1 else torch.cat(given)

    return {original: partial(make, rows) for original, rows in parts.items()}


def original_shapes(table: Table, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """What `originals` would make, as shapes."""
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return {key: tuple(make().shape) for key, make in originals(table, meta).items()}
