"""A table of tensors, in memory or on disk, that is only ever added to.

On disk it is a folder of shards: safetensors files whose header holds the keys of their rows. A shard is written under
a temporary name, synced and renamed, so it is complete or not there; a process that is killed leaves at most a
temporary file, which nobody reads. Several processes may read and add at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 1  # part of every key: a change of what is stored must change it
_ROWS = 256  # of a shard, at most
_BYTES = 128 * 2**20  # of a shard, about

Row = Mapping[str, Tensor]


def content_key(*parts: object) -> str:
    """A name for what these parts determine: equal parts, equal name."""
    return hashlib.blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


class Table:
    """Rows of named tensors by key.

    Args:
        folder: where the shards lie; None keeps all rows in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._places: dict[str, tuple[dict[str, Tensor], int]] = {}  # key -> (shard, row)
        self._pending: dict[tuple, list[tuple[str, Row]]] = {}  # rows of equal shapes, not yet in a shard
        self._opened: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places) + sum(len(rows) for rows in self._pending.values())

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, row: Row) -> None:
        """Store a row; it can be read after the next `flush`, which happens by itself now and then."""
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(row.items()))
        rows = self._pending.setdefault(shapes, [])
        rows.append((key, {name: tensor.detach().cpu() for name, tensor in row.items()}))
        if len(rows) >= _ROWS or len(rows) * sum(t.nbytes for t in row.values()) >= _BYTES:
            self._write(self._pending.pop(shapes))

    def flush(self) -> None:
        """Make all added rows readable, and on disk durable."""
        while self._pending:
            self._write(self._pending.popitem()[1])

    def row(self, key: str) -> dict[str, Tensor]:
        """One row. The tensors are the table's own: do not change them."""
        shard, row = self._places[key]
        return {name: tensor[row] for name, tensor in shard.items()}

    def column(self, name: str, keys: Sequence[str]) -> Tensor:
        """One field of many rows, stacked."""
        places = self._places
        return torch.stack([shard[name][row] for shard, row in (places[key] for key in keys)])

    def fields(self, key: str) -> Iterable[str]:
        """The names of the fields that a row has."""
        return self._places[key][0].keys()

    def refresh(self) -> None:
        """See what other processes have added to the folder."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._opened:
                continue
            try:
                keys, shard = _read(path)
            except (SafetensorError, OSError, KeyError, ValueError):
                continue  # not a whole shard of ours, so its rows are not here: they are computed again
            self._opened.add(path.name)
            self._place(keys, shard)

    def _write(self, rows: list[tuple[str, Row]]) -> None:
        keys = [key for key, _ in rows]
        shard = {name: torch.stack([row[name] for _, row in rows]) for name in rows[0][1]}
        if self.folder is None:
            self._place(keys, shard)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        write_durably(path, save(shard, metadata={"format": str(FORMAT), "keys": json.dumps(keys)}))
        self._opened.add(path.name)
        self._place(*_read(path))

    def _place(self, keys: Sequence[str], shard: dict[str, Tensor]) -> None:
        for row, key in enumerate(keys):
            self._places.setdefault(key, (shard, row))


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, it is there with all of its content or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the new name itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """Keys and tensors of a shard; the tensors are mapped from the file, and read when they are used."""
    with safe_open(path, "pt") as file:
        keys = json.loads((file.metadata() or {})["keys"])
        names: list[str] = list(file.keys())
        shard = {name: file.get_tensor(name) for name in names}
    if any(len(tensor) != len(keys) for tensor in shard.values()):
        raise ValueError(f"{path}: the header names {len(keys)} rows, the tensors hold others")
    return keys, shard
