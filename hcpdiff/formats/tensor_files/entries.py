"""A tensor without its values: what it is, where it lies in a file, or how it is made for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """What a tensor is."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Stored(Entry):
    """A tensor in a file."""

    path: Path
    start: int = 0  # of its first byte in the file


@dataclass(frozen=True)
class Given(Entry):
    """A tensor to be written; `make` gives it when its turn comes."""

    make: Callable[[], Tensor]
