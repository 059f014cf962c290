"""A summary of all shards of a folder, so that opening a large table reads one file.

It only ever speaks of shards that are complete. It may be lost, damaged or out of date: shards that it does not know
are opened one by one.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hcpdiff.data.cache.durable import write_durably
from hcpdiff.data.cache.keys import FORMAT
from hcpdiff.data.cache.shards import SUFFIX, ShardInfo, layouts_from_json, layouts_to_json

INDEX = "index.npz"

Entry = tuple[ShardInfo, np.ndarray]  # a shard, and the (rows, 16) keys in it


def write_index(folder: Path, shards: Sequence[ShardInfo], keys: np.ndarray) -> None:
    """Summarize these shards; `keys` (N, 16) are those of all their rows, one shard after the other."""
    layouts = list(dict.fromkeys(shard.layout for shard in shards))
    numbers = {layout: number for number, layout in enumerate(layouts)}
    content = io.BytesIO()
    np.savez(
        content,
        format=np.array(FORMAT),
        names=_bytes("\n".join(shard.name for shard in shards)),
        table=np.array([[s.nbytes, s.header, s.rows, numbers[s.layout]] for s in shards], dtype=np.int64).reshape(
            -1, 4
        ),
        layouts=_bytes(layouts_to_json(layouts)),
        keys=keys,
    )
    write_durably(folder / INDEX, content.getvalue())


def read_index(folder: Path) -> dict[str, Entry]:
    """What the index says, by the names of shards; nothing if there is no sound one."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as file:  # a zip: each part has a checksum, which is tested
            parts = {name: file[name] for name in file.files}
        return _entries(parts) if int(parts["format"]) == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return {}


def shard_files(folder: Path) -> dict[str, int]:
    """Names and bytes of all shards in a folder, in the order of their names."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.endswith(SUFFIX) and not entry.name.startswith(".")]
            return {entry.name: entry.stat().st_size for entry in sorted(found, key=lambda entry: entry.name)}
    except FileNotFoundError:
        return {}


def _entries(parts: Mapping[str, np.ndarray]) -> dict[str, Entry]:
    layouts = layouts_from_json(parts["layouts"].tobytes().decode())
    names = [name for name in parts["names"].tobytes().decode().split("\n") if name]
    entries, start = {}, 0
    for name, (nbytes, header, rows, layout) in zip(names, parts["table"].tolist(), strict=True):
        entries[name] = ShardInfo(name, nbytes, header, rows, layouts[layout]), parts["keys"][start : start + rows]
        start += rows
    if start != len(parts["keys"]):
        raise ValueError("the index has too many keys")
    return entries


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)
