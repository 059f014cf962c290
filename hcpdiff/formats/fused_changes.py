"""A layer whose rows are those of several layers beside each other, as of q, k and v: its change, and theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from hcpdiff.formats.changes import AnyChange
from hcpdiff.formats.dora import DoRA
from hcpdiff.formats.lora_files import Update, fuse
from hcpdiff.formats.lycoris import Full, LoKr
from hcpdiff.formats.oft import OFT


def separated(change: AnyChange, shares: Sequence[int]) -> list[AnyChange]:
    """The changes of the layers whose rows a fused layer has, as of q, k and v.

    Raises:
        ValueError: the rows cannot be parted like this.
    """
    total = change.num_rows()
    if total is None:
        return [change for _ in shares]
    unit, left = divmod(total, sum(shares))
    if left:
        raise ValueError(f"a fused layer has {total} rows, which do not divide by {sum(shares)}")
    ends = [unit * sum(shares[: i + 1]) for i in range(len(shares))]
    return [change.rows(end - unit * share, end) for end, share in zip(ends, shares, strict=True)]


def joined(parts: Sequence[AnyChange | None], shares: Sequence[int]) -> AnyChange:
    """Inverse of `separated`.

    Raises:
        ValueError: no one change does to the fused layer what these do to its parts.
    """
    present = [part for part in parts if part is not None]
    first = present[0]
    if len(present) < len(parts) or any(type(part) is not type(first) for part in present):
        raise ValueError("layers that are changed in different ways do not fit into one")
    if isinstance(first, Update):
        return fuse([part for part in present if isinstance(part, Update)], shares)
    own = {f.name: [getattr(part, f.name) for part in present] for f in fields(first)}
    new: dict[str, Any] = {name: _cat(own[name], dim) for name, dim in first.row_dims.items()}
    if isinstance(first, DoRA):
        new["of"] = joined(own["of"], shares)
    elif isinstance(first, LoKr) and first.pieces:
        new["pieces"] = _together([piece for pieces in own["pieces"] for piece in pieces], first.whole_rows())
    elif isinstance(first, OFT) and not first.staged and not first.alpha:
        new |= {"blocks": _cat(own["blocks"]), "rescale": _cat(own["rescale"])}
    for name, values in own.items():
        if name not in new and not all(_same(values[0], value) for value in values):
            raise ValueError(f"changes of layers that differ in {name} do not fit into one")
    return replace(first, **new)


def alone(change: AnyChange) -> AnyChange:
    """The same without what is of other layers: a part of a LoKr is the difference itself."""
    if isinstance(change, DoRA):
        return replace(change, of=alone(change.of))
    return Full(change.delta()) if isinstance(change, LoKr) and change.pieces else change


def swapped(change: AnyChange) -> AnyChange:
    """The two halves of the rows exchanged."""
    half = (change.num_rows() or 0) // 2
    if isinstance(change, Update):
        return replace(change, up=torch.cat(change.up.chunk(2)[::-1]))
    return joined([change.rows(half, 2 * half), change.rows(0, half)], (1, 1)) if half else change


def _together(pieces: Sequence[tuple[int, int]], total: int) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for start, stop in pieces:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, stop))
    return () if merged == [(0, total)] else tuple(merged)


def _cat(tensors: Sequence[Tensor | None], dim: int = 0) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return None
    shapes = {(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in present}
    if len(present) < len(tensors) or len(shapes) > 1:
        raise ValueError("changes of layers with matrices of other sizes do not fit into one")
    return torch.cat(present, dim)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and not isinstance(a, Tensor) and a == b
