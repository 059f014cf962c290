"""Opening files of weights without reading them: names, shapes and dtypes at once, then tensors one by one.

A tensor is read into memory of its own. One that is mapped lies unaligned in its file, which changes the last bits of
what is computed, and the pages of the map count besides those of the copy.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from torch import Tensor

Name = TypeVar("Name")
SUFFIXES = (".safetensors", ".ckpt")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
READERS = min(4, os.cpu_count() or 1)  # threads; most of their time the system maps fresh memory
CHUNK = 1 << 20  # elements that are converted at once
# What torch.load raises of files that are cut off or no checkpoints.
_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, struct.error)


def is_file(path: str | Path) -> bool:
    """Whether `path` names one file of weights, be it there or not."""
    path = Path(path).expanduser()
    return path.suffix in SUFFIXES and not path.is_dir()


@dataclass(frozen=True)
class Stored:
    """What a file says of a tensor."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0  # of its first byte in the file


class Weights(ABC):
    """The tensors of one file or of several."""

    tensors: Mapping[str, Stored]

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


def open_weights(path: str | Path) -> Weights:
    """Open a safetensors or ckpt file. Of a ckpt only tensors and plain values are read, no code in it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, or no file of weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give a model's single file, its folder, or owner/name on the hub")
    return safetensors([path]) if path.suffix == ".safetensors" else _checkpoint(path)


def read_all(reads: Mapping[Name, Callable[[], Tensor]]) -> dict[Name, Tensor]:
    """What all of these give, several at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(reads, pool.map(lambda read: read(), reads.values()), strict=True))


class Plain(Weights):
    """Tensors that lie in their files as plain bytes, all in one or in the shards of a model."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self.tensors = tensors

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
        self.tensors = {key: Stored(path, tuple(x.shape), x.dtype) for key, x in tensors.items()}

    def read(self, key: str, dtype: torch.dtype | None = None, *, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self._tensors[key] if rows is None else self._tensors[key][slice(*rows)]
        return tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)


def safetensors(paths: Iterable[Path]) -> Weights:
    """One safetensors file, or the shards of a model.

    Raises:
        ValueError: one of them is truncated, or no safetensors.
    """
    return Plain({key: stored for path in paths for key, stored in _header(path).items()})


def _header(path: Path) -> dict[str, Stored]:
    """What a file holds, by https://github.com/huggingface/safetensors#format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _broken(path, f"it is {size} bytes long, its header alone {8 + length}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors, ends = {}, [0]
            for key, entry in header.items():
                shape, dtype, (start, end) = tuple(entry["shape"]), DTYPES[entry["dtype"]], entry["data_offsets"]
                if prod(shape) * dtype.itemsize != end - start or not 0 <= start <= end:
                    raise _broken(path, f"{key}, {list(shape)} of {entry['dtype']}, has {end - start} bytes")
                tensors[key] = Stored(path, shape, dtype, 8 + length + start)
                ends.append(end)
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise _broken(path, f"its header is none that is known: {type(error).__name__}: {error}") from error
    if (whole := 8 + length + max(ends)) != size:
        raise _broken(path, f"it is {size} bytes long, by its header {whole}")
    return tensors


def _broken(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: no whole safetensors file ({what}); download it again")


def _read(file: FileIO, shape: tuple[int, ...], stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """The tensor that begins where the file stands; converted in pieces, so that there is never a copy of it."""
    out = torch.empty(shape, dtype=dtype)
    flat = out.view(-1)
    if stored == dtype:
        _fill(flat, file)
        return out
    piece = torch.empty(min(CHUNK, len(flat)), dtype=stored)
    for i in range(0, len(flat), CHUNK):
        target = flat[i : i + CHUNK]
        _fill(piece[: len(target)], file)
        target.copy_(piece[: len(target)])
    return out


def _fill(flat: Tensor, file: FileIO) -> None:
    """Bytes of the file to a contiguous (N,) tensor."""
    memory = flat.view(torch.uint8).numpy().data
    while memory:
        count = file.readinto(memory)
        if not count:
            raise _broken(Path(file.name), f"it has become shorter, and {len(memory)} bytes are missing")
        memory = memory[count:]


def _checkpoint(path: Path) -> Weights:
    """Where its tensors lie, if the file tells; an old one does not, and is read at once."""
    if not is_zipfile(path):
        return Loaded(path, _unpickled(path))
    skeleton = _unpickled(path, map_location="meta")
    starts = {key: _start(x) for key, x in skeleton.items()}
    if None in starts.values():
        return Loaded(path, _unpickled(path, mmap=True))
    return Plain({key: Stored(path, tuple(x.shape), x.dtype, starts[key] or 0) for key, x in skeleton.items()})


def _start(tensor: Tensor) -> int | None:
    """The place in the file of a tensor that torch.load has put on the meta device; older versions do not tell."""
    storage: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if storage is None or not tensor.is_contiguous():
        return None
    return storage + int(tensor.storage_offset()) * tensor.dtype.itemsize


def _unpickled(path: Path, *, map_location: str = "cpu", **options: Any) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, **options)
    except _BROKEN as error:
        raise ValueError(
            f"{path}: no plain tensors ({path.stat().st_size} bytes; {type(error).__name__}); it is truncated or "
            "holds other objects, which are never unpickled here: use the model's safetensors file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: no tensors by name here, but a {type(content).__name__}")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}
