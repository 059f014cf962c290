"""Writing safetensors files tensor by tensor: none is copied, converted or joined before its turn."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hcpdiff.formats.tensor_files.reading import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Given:
    """A tensor to be written; `make` gives it when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def given(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Given]:
    """The tensors of a state dict, of those with two names the first; floating ones in `dtype`, or as they are."""
    first = {id(tensor): key for key, tensor in reversed(list(state.items()))}
    own = {key: state[key].detach() for key in state if first[id(state[key])] == key}
    return cast({key: Given(tuple(x.shape), x.dtype, lambda x=x: x) for key, x in own.items()}, dtype)


def cast(tensors: Mapping[str, Given], dtype: torch.dtype | None) -> dict[str, Given]:
    """The same, floating ones in `dtype`; None leaves them as they are."""
    if dtype is None:
        return dict(tensors)
    return {key: replace(x, dtype=dtype) if x.dtype.is_floating_point else x for key, x in tensors.items()}


def write(path: Path, tensors: Mapping[str, Given]) -> None:
    """Write one file, which appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))  # so that all are aligned
    with _replacing(path) as file:
        file.write(_header(tensors, order))
        for key in order:
            tensor = tensors[key].make().to("cpu", tensors[key].dtype).contiguous()
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


def write_shards(folder: Path, name: str, tensors: Mapping[str, Given], shard_size: str | int | None = None) -> None:
    """Write <name>.safetensors; or, if that were larger than `shard_size`, several, and the index that readers expect.

    Args:
        shard_size: the most bytes of a file, such as "5GB"; a tensor that is larger has a file of its own.
    """
    shards = _shards(tensors, None if shard_size is None else as_bytes(shard_size))
    index = folder / f"{name}.safetensors.index.json"
    if len(shards) < 2:
        write(folder / f"{name}.safetensors", tensors)
        index.unlink(missing_ok=True)
        return
    files = [f"{name}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, keys in zip(files, shards, strict=True):
        write(folder / file, {key: tensors[key] for key in keys})
    places = {key: file for file, keys in zip(files, shards, strict=True) for key in keys}
    content = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": places}
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def as_bytes(size: str | int) -> int:
    """A number of bytes, e.g. 5000000, "5GB" or "500 MB"; a GB is 10^9 bytes, a GiB 2^30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B|)", str(size).strip().upper())
    if found is None or (count := int(float(found[1]) * UNITS[found[2]])) < 1:
        raise ValueError(f"shard_size: {size!r} is no size of a file; use e.g. 5GB or 500MB")
    return count


def _shards(tensors: Mapping[str, Given], most: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        if most is not None and shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.nbytes
    return shards


def _header(tensors: Mapping[str, Given], order: list[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key in order:
        tensor = tensors[key]
        end = start + tensor.nbytes
        entries[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk tells none
        raise
    finally:
        temporary.unlink(missing_ok=True)
