"""Names of rows by what decides their content, and which rows have which names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

FORMAT = 2  # part of every key: a change of what is stored must change it
KEY_BYTES = 16

Key = bytes  # KEY_BYTES of them


def content_key(*parts: object) -> Key:
    """A name for what these parts determine: equal parts, equal name."""
    return hashlib.blake2b(repr((FORMAT, *parts)).encode(), digest_size=KEY_BYTES).digest()


class KeyIndex:
    """The keys of rows 0, 1, 2 ..., and back from keys to rows: 24 bytes a row."""

    def __init__(self) -> None:
        self._keys = np.zeros((1024, KEY_BYTES), dtype=np.uint8)
        self._count = 0
        self._order = np.zeros(0, dtype=np.int64)  # the first rows, sorted by key; of equal keys the first row first
        self._newest: dict[Key, int] = {}  # the other rows

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> np.ndarray:
        """Of all rows, (N, 16) uint8."""
        return self._keys[: self._count]

    def append(self, keys: np.ndarray) -> None:
        """Add rows with these (n, 16) keys."""
        first, self._count = self._count, self._count + len(keys)
        if self._count > len(self._keys):
            room = np.zeros((max(self._count, 2 * len(self._keys)), KEY_BYTES), dtype=np.uint8)
            room[:first] = self._keys[:first]
            self._keys = room
        self._keys[first : self._count] = keys
        if self._count - len(self._order) > max(4096, len(self._order) // 8):
            self._order = np.argsort(_flat(self.keys), kind="stable")
            self._newest = {}
            return
        for number in range(first, self._count):
            self._newest.setdefault(self._keys[number].tobytes(), number)

    def find(self, keys: Sequence[Key] | np.ndarray) -> np.ndarray:
        """The rows of a list of keys, or of (..., 16) uint8, in its shape; -1 where there is none."""
        wanted = np.ascontiguousarray(_as_array(keys))
        flat = _flat(wanted)
        found = np.full(len(flat), -1, dtype=np.int64)
        if len(self._order):
            known = _flat(self._keys[: len(self._order)])
            at = np.searchsorted(known, flat, sorter=self._order)
            candidate = self._order[np.minimum(at, len(self._order) - 1)]
            found = np.where(known[candidate] == flat, candidate, found)
        if self._newest:
            rows = wanted.reshape(-1, KEY_BYTES)
            for number in np.flatnonzero(found < 0).tolist():
                found[number] = self._newest.get(rows[number].tobytes(), -1)
        return found.reshape(wanted.shape[:-1])


def _as_array(keys: Sequence[Key] | np.ndarray) -> np.ndarray:
    if isinstance(keys, np.ndarray):
        return keys
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _flat(keys: np.ndarray) -> np.ndarray:
    """Contiguous keys as one array of texts of 16 bytes, which sort and compare as a whole."""
    return keys.reshape(-1).view(f"S{KEY_BYTES}")
