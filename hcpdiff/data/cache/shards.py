"""Shards: files of rows that are written once, whole, and never changed.

A shard is a safetensors file; its tensor `__keys__` holds the keys of its rows. Its name is the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from hcpdiff.data.cache.durable import write_durably
from hcpdiff.data.cache.keys import FORMAT, KEY_BYTES

SUFFIX = ".safetensors"
KEYS = "__keys__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Field:
    """One tensor of every row."""

    name: str
    dtype: str  # in the words of safetensors
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _DTYPES[self.dtype].itemsize * prod(self.shape)


Layout = tuple[Field, ...]  # the fields of a shard's rows, keys included, in the order of the file


@dataclass(frozen=True)
class ShardInfo:
    """What an index knows of a shard."""

    name: str
    nbytes: int  # of the file
    header: int  # bytes before the first tensor
    rows: int
    layout: Layout

    def __post_init__(self) -> None:
        if self.header + self.rows * sum(field.nbytes for field in self.layout) != self.nbytes:
            raise ValueError(f"{self.name}: it is not as long as its header says")

    def places(self) -> dict[str, tuple[Field, int]]:
        """Each field, and the byte where its tensor begins."""
        places, start = {}, self.header
        for field in self.layout:
            places[field.name] = (field, start)
            start += self.rows * field.nbytes
        return places


def write_shard(folder: Path, keys: np.ndarray, fields: Mapping[str, Tensor], *, sync: bool = True) -> ShardInfo:
    """Write rows, (n, 16) keys and tensors (n, ...), into a file of `folder`."""
    content = save({**fields, KEYS: torch.from_numpy(np.array(keys))}, metadata={"format": str(FORMAT)})
    name = _digest(content) + SUFFIX
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / name, content, sync=sync)
    return _parse(name, content, len(content))


def read_info(path: Path) -> ShardInfo:
    """What a shard's header says.

    Raises:
        ValueError, KeyError, TypeError: it is no whole shard.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        nbytes = path.stat().st_size
        if length > nbytes:
            raise ValueError(f"{path.name}: it is cut off")
        return _parse(path.name, start + file.read(length), nbytes)


def read_keys(path: Path, info: ShardInfo) -> np.ndarray:
    """The keys of a shard's rows, (n, 16) uint8."""
    with path.open("rb") as file:
        file.seek(info.places()[KEYS][1])
        content = file.read(info.rows * KEY_BYTES)
    return np.frombuffer(content, dtype=np.uint8).reshape(info.rows, KEY_BYTES)


def map_shard(path: Path, info: ShardInfo) -> dict[str, Tensor]:
    """The tensors of a shard, mapped from its file: read when they are used, and no memory of this process's own."""
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=info.nbytes)
    tensors = {}
    for field, start in info.places().values():
        if field.name == KEYS:
            continue
        dtype = _DTYPES[field.dtype]
        shape = (info.rows, *field.shape)
        stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        empty = torch.empty(0, dtype=dtype)
        tensors[field.name] = empty.set_(storage, start // dtype.itemsize, shape, stride)  # pyright: ignore
    return tensors


def is_sound(path: Path) -> bool:
    """Whether every byte of a shard is as it was written."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == path.name.removesuffix(SUFFIX)


def layouts_to_json(layouts: Sequence[Layout]) -> str:
    """For an index."""
    return json.dumps([[[field.name, field.dtype, list(field.shape)] for field in layout] for layout in layouts])


def layouts_from_json(text: str) -> list[Layout]:
    """Inverse of `layouts_to_json`."""
    return [tuple(Field(name, dtype, tuple(shape)) for name, dtype, shape in fields) for fields in json.loads(text)]


def _parse(name: str, content: bytes, nbytes: int) -> ShardInfo:
    """A shard from the beginning of its content."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if header.pop("__metadata__")["format"] != str(FORMAT):
        raise ValueError(f"{name}: it is of another version")
    entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
    rows = header[KEYS]["shape"][0]
    fields, start = [], 0
    for field, entry in entries:
        count, *shape = entry["shape"]
        if count != rows or entry["data_offsets"][0] != start:
            raise ValueError(f"{name}: {field} has {count} rows, the keys are {rows}")
        start = entry["data_offsets"][1]
        if (8 + length + entry["data_offsets"][0]) % _DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{name}: {field} cannot be mapped")
        fields.append(Field(field, entry["dtype"], tuple(shape)))
    return ShardInfo(name, nbytes, 8 + length, rows, tuple(fields))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).hexdigest()
