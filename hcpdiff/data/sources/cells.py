"""Millions of small values in little memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable

import numpy as np

Cell = str | int | float | bool | list | None


class Cells:
    """A column of texts, numbers and lists of them, packed into one run of bytes."""

    def __init__(self, values: Iterable[Cell] = ()) -> None:
        self._data = bytearray()
        self._ends = array("q")
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Cell:
        packed = self.packed(index)
        return packed[1:].decode("utf-8", "surrogatepass") if packed[:1] == b"s" else json.loads(packed)

    def append(self, value: Cell) -> None:
        """Add a value at the end."""
        if isinstance(value, str):
            self._data += b"s"
            self._data += value.encode("utf-8", "surrogatepass")
        else:
            self._data += json.dumps(value).encode()
        self._ends.append(len(self._data))

    def packed(self, index: int) -> bytes:
        """The bytes of one value; equal values have equal bytes."""
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        return bytes(self._data[self._ends[index - 1] if index else 0 : self._ends[index]])

    def occurrences(self) -> np.ndarray:
        """(N,) int32: how many equal values stand before each, so that equal names can be told apart."""
        count = len(self)
        hashes = np.fromiter((hash(self.packed(index)) for index in range(count)), dtype=np.int64, count=count)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        new = np.ones(count, dtype=bool)
        new[1:] = ordered[1:] != ordered[:-1]
        starts = np.maximum.accumulate(np.where(new, np.arange(count), 0))
        result = np.empty(count, dtype=np.int32)
        result[order] = np.arange(count) - starts
        return result
