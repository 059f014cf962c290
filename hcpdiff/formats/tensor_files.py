"""Safetensors files tensor by tensor: of a model of any size, never more than one tensor is in memory.

A file is the length of its header in eight bytes, the header as JSON, and the tensors' bytes one after the other
(https://huggingface.co/docs/safetensors). Tensors are read, not mapped: what is mapped stays in memory once touched.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes; other readers refuse more
SHARD = 10_000_000_000  # bytes; diffusers begins another file after as many


@dataclass(frozen=True)
class Entry:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class TensorFile:
    """A safetensors file to read from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"no file at {self.path}")
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            header = self._header(file)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.entries: dict[str, Entry] = {}
        self._starts: dict[str, int] = {}
        for key, value in header.items():
            self.entries[key] = self._entry(key, value)
            self._starts[key] = self._data + value["data_offsets"][0]
        missing = self._data + sum(entry.size for entry in self.entries.values()) - self.size
        if missing:
            raise self._broken(f"{abs(missing)} bytes {'are missing' if missing > 0 else 'too many'}")

    def get(self, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or these rows of it; its memory is its own."""
        entry, start = self.entries[key], self._starts[key]
        if rows is not None:
            width = entry.size // max(entry.shape[0], 1)
            start, entry = start + rows[0] * width, Entry(entry.dtype, (rows[1] - rows[0], *entry.shape[1:]))
        data = torch.empty(entry.size, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            view, done = data.numpy().data, 0
            while done < entry.size:
                count = file.readinto(view[done:])
                if not count:
                    raise self._broken("it became shorter while it was read")
                done += count
        return data.view(entry.dtype).view(entry.shape)

    def _header(self, file: Any) -> dict[str, Any]:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        self._data = 8 + length
        if not 2 <= length <= LARGEST_HEADER or self._data > self.size:
            raise self._broken("it does not begin with a header")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise self._broken("its header is no JSON") from None
        if not isinstance(header, dict):
            raise self._broken("its header lists no tensors")
        return header

    def _entry(self, key: str, value: Any) -> Entry:
        try:
            entry = Entry(DTYPES[value["dtype"]], tuple(value["shape"]))
            start, stop = value["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise self._broken(f"the header's {key!r} is not understood") from None
        if stop - start != entry.size or not 0 <= start <= stop <= self.size - self._data:
            raise self._broken(f"the bytes of {key!r} are not those of its shape")
        return entry

    def _broken(self, why: str) -> ValueError:
        return ValueError(f"{self.path}: no whole safetensors file ({self.size} bytes): {why}; get it again")


Get = Callable[[str], Tensor]


def write(path: Path, entries: Mapping[str, Entry], get: Get, metadata: Mapping[str, str]) -> None:
    """Write a file, asking for its tensors one after the other; it appears when it is complete, and else not at all.

    Args:
        entries: of what dtype and shape `get` will give each tensor; wide dtypes are written first, as others do.
    """
    keys = sorted(entries, key=lambda key: (-entries[key].dtype.itemsize, key))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_packed_header({key: entries[key] for key in keys}, metadata))
        for key in keys:
            tensor = get(key)
            found = Entry(tensor.dtype, tuple(tensor.shape))
            assert found == entries[key], f"{key}: {found} for {entries[key]}"
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def write_folder(
    folder: Path, name: str, entries: Mapping[str, Entry], get: Get, metadata: Mapping[str, str], *, shard: int = SHARD
) -> list[Path]:
    """Write <name>.safetensors, or several files and <name>.safetensors.index.json, as diffusers and transformers do.

    Args:
        shard: bytes after which another file begins; a bigger tensor has a file of its own.
    """
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for key, entry in entries.items():
        if shards[-1] and size + entry.size > shard:
            shards.append({})
            size = 0
        shards[-1][key] = entry
        size += entry.size
    count = len(shards)
    names = [f"{name}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = names if count > 1 else [f"{name}.safetensors"]
    for file, own in zip(names, shards, strict=True):
        write(folder / file, own, get, metadata)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(entry.size for entry in entries.values())},
            "weight_map": {key: file for file, own in zip(names, shards, strict=True) for key in own},
        }
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return [folder / file for file in names]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when all went well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _packed_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for key, entry in entries.items():
        stop = start + entry.size
        header[key] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
