"""Writing safetensors files tensor by tensor: none is copied, converted or joined before its turn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hcpdiff.formats.tensor_files.dtypes import NAMES
from hcpdiff.formats.tensor_files.entries import Entry, Given
from hcpdiff.formats.tensor_files.opening import write_json
from hcpdiff.formats.tensor_files.replacing import replacing_file

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
PLAIN = {"format": "pt"}  # the header of files that say nothing more; transformers wants it


def given(state: Mapping[str, Tensor]) -> dict[str, Given]:
    """Tensors that are in memory."""
    return {key: Given(x.dtype, tuple(x.shape), lambda x=x: x) for key, x in state.items()}


def cast(tensors: Mapping[str, Given], dtype: torch.dtype | None) -> dict[str, Given]:
    """The same, floating ones in `dtype`; None leaves them as they are."""
    if dtype is None:
        return dict(tensors)
    return {key: replace(x, dtype=dtype) if x.dtype.is_floating_point else x for key, x in tensors.items()}


def write(path: Path, tensors: Mapping[str, Given], metadata: Mapping[str, str] = PLAIN) -> None:
    """Write one file, which appears complete or not at all.

    Args:
        metadata: what its header says besides.
    """
    with replacing_file(path) as file:
        file.write(_header(tensors, metadata))
        file.writelines(contents(tensors))


def contents(tensors: Mapping[str, Given]) -> Iterator[memoryview]:
    """The bytes of a file after its header; every tensor is made when its turn comes and kept no longer."""
    return (_bytes(tensors[key]) for key in _ordered(tensors))


def write_folder(
    folder: Path,
    name: str,
    tensors: Mapping[str, Given],
    metadata: Mapping[str, str] = PLAIN,
    *,
    shard_size: str | int | None = None,
) -> None:
    """Write <name>.safetensors; or, if that were larger than `shard_size`, several, and the index that readers expect.

    Args:
        shard_size: the most bytes of a file, such as "5GB"; a tensor that is larger has a file of its own.
    """
    shards = _shards(tensors, None if shard_size is None else as_bytes(shard_size))
    index = folder / f"{name}.safetensors.index.json"
    if len(shards) < 2:
        write(folder / f"{name}.safetensors", tensors, metadata)
        index.unlink(missing_ok=True)
        return
    files = [f"{name}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, keys in zip(files, shards, strict=True):
        write(folder / file, {key: tensors[key] for key in keys}, metadata)
    places = {key: file for file, keys in zip(files, shards, strict=True) for key in keys}
    write_json(index, {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": places})


def as_bytes(size: str | int) -> int:
    """A number of bytes, e.g. 5000000, "5GB" or "500 MB"; a GB is 10^9 bytes, a GiB 2^30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B|)", str(size).strip().upper())
    if found is None or (count := int(float(found[1]) * UNITS[found[2]])) < 1:
        raise ValueError(f"shard_size: {size!r} is no size of a file; use e.g. 5GB or 500MB")
    return count


def _bytes(tensor: Given) -> memoryview:
    made = tensor.make().detach().to("cpu", tensor.dtype).contiguous()
    assert tuple(made.shape) == tensor.shape, f"{tuple(made.shape)} for {tensor.shape}"
    return made.view(-1).view(torch.uint8).numpy().data


def _ordered(tensors: Mapping[str, Entry]) -> list[str]:
    """Wide dtypes first, so that all are aligned."""
    return sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))


def _shards(tensors: Mapping[str, Entry], most: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        if most is not None and shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.nbytes
    return shards


def _header(tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for key in _ordered(tensors):
        tensor = tensors[key]
        end = start + tensor.nbytes
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
