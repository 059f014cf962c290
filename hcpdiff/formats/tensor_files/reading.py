"""Reading safetensors files: names, shapes and dtypes at once, then tensors one by one.

A tensor is read into memory of its own. One that is mapped lies unaligned in its file, which changes the last bits of
what is computed, and the pages of the map count besides those of the copy.
"""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hcpdiff.formats.tensor_files.dtypes import DTYPES
from hcpdiff.formats.tensor_files.entries import Stored

Name = TypeVar("Name")
LARGEST_HEADER = 100_000_000  # bytes; other readers refuse more
READERS = min(4, os.cpu_count() or 1)  # threads; most of their time the system maps fresh memory
PIECE = 1 << 22  # bytes that are converted at once

_local = threading.local()


class Weights(ABC):
    """The tensors of one file or of several; none of them is read yet.

    Args:
        files: where they lie.
        tensors: by their keys.
        metadata: what the headers say besides.
    """

    def __init__(
        self, files: Iterable[Path], tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.files = tuple(files)
        self.tensors = tensors
        self.metadata = metadata or {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: stored.shape for key, stored in self.tensors.items()}

    @abstractmethod
    def read(self, key: str, dtype: torch.dtype | None = None, *, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor in memory of its own.

        Args:
            dtype: None leaves it as it is.
            rows: from where to where of the first dimension; None is all.

        Raises:
            ValueError: the file has become shorter.
        """


class Plain(Weights):
    """Tensors that lie in their files as plain bytes, all in one or in the shards of a model."""

    def read(self, key: str, dtype: torch.dtype | None = None, *, rows: tuple[int, int] | None = None) -> Tensor:
        stored = self.tensors[key]
        first, shape = 0, stored.shape
        if rows is not None:
            first, shape = rows[0], (rows[1] - rows[0], *shape[1:])
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.start + first * prod(shape[1:]) * stored.dtype.itemsize)
            return _read(file, shape, stored.dtype, dtype or stored.dtype)


class Loaded(Weights):
    """Tensors that are in memory already, or mapped."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        super().__init__([path], {key: Stored(x.dtype, tuple(x.shape), path) for key, x in tensors.items()})

    def read(self, key: str, dtype: torch.dtype | None = None, *, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self._tensors[key] if rows is None else self._tensors[key][slice(*rows)]
        return tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)


def safetensors(paths: Iterable[Path]) -> Weights:
    """One safetensors file, or the shards of a model.

    Raises:
        ValueError: one of them is truncated, or no safetensors.
    """
    files = tuple(paths)
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for path in files:
        own, said = _header(path)
        tensors |= own
        metadata |= said
    return Plain(files, tensors, metadata)


def read_all(reads: Mapping[Name, Callable[[], Tensor]]) -> dict[Name, Tensor]:
    """What all of these give, several at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(reads, pool.map(lambda read: read(), reads.values()), strict=True))


def _header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """What a file holds, and what it says of that."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= LARGEST_HEADER else b""
    if not text.startswith(b"{"):
        raise _broken(path, "it does not begin with a header")
    if len(text) < length:
        raise _broken(path, f"its header alone has {8 + length}")
    try:
        header = json.loads(text)
    except ValueError:
        raise _broken(path, "its header is no JSON") from None
    metadata = header.pop("__metadata__", {})
    tensors = {key: _stored(path, key, value, 8 + length) for key, value in header.items()}
    end = max((stored.start + stored.nbytes for stored in tensors.values()), default=8 + length)
    if end != size:
        raise _broken(path, f"by its header it has {end}")
    if 8 + length + sum(stored.nbytes for stored in tensors.values()) != end:
        raise _broken(path, "its tensors do not lie one after the other")
    return tensors, metadata


def _stored(path: Path, key: str, value: Any, begin: int) -> Stored:
    try:
        start, stop = value["data_offsets"]
        stored = Stored(DTYPES[value["dtype"]], tuple(value["shape"]), path, begin + start)
        fits = start >= 0 and stop - start == stored.nbytes
    except (LookupError, TypeError, ValueError):
        raise _broken(path, f"the header's {key!r} is not understood") from None
    if not fits:
        raise _broken(path, f"the bytes of {key!r} are not those of its shape")
    return stored


def _broken(path: Path, why: str) -> ValueError:
    return ValueError(f"{path}: no whole safetensors file ({path.stat().st_size} bytes): {why}; download it again")


def _read(file: FileIO, shape: tuple[int, ...], stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """The tensor that begins where the file stands; converted in pieces, so that there is never a copy of it."""
    out = torch.empty(shape, dtype=dtype)
    flat = out.view(-1)
    if stored == dtype:
        _fill(flat, file)
        return out
    piece = _piece().view(stored)
    for target in flat.split(len(piece)):
        _fill(piece[: len(target)], file)
        target.copy_(piece[: len(target)])
    return out


def _piece() -> Tensor:
    """Memory of this thread for what is converted; made anew each time, it would leave holes between the tensors."""
    if not hasattr(_local, "piece"):
        _local.piece = torch.empty(PIECE, dtype=torch.uint8)
    return _local.piece


def _fill(flat: Tensor, file: FileIO) -> None:
    """Bytes of the file to a contiguous (N,) tensor."""
    memory = flat.view(torch.uint8).numpy().data
    while memory:
        count = file.readinto(memory)
        if not count:
            raise _broken(Path(file.name), f"it has become shorter, and {len(memory)} bytes are missing")
        memory = memory[count:]
