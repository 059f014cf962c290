"""A table of tensors, in memory or on disk, that is only ever added to.

On disk it is a folder of shards, each written under a temporary name, synced and renamed, so it is complete or not
there; a process that is killed leaves at most a temporary file, which nobody reads. Several processes may read and add
at once. Rows are mapped from the files: a reader needs no memory of its own but 24 bytes a row.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hcpdiff.data.cache.durable import FolderLock, for_speed_alone, write_durably
from hcpdiff.data.cache.index import read_index, shard_files, write_index
from hcpdiff.data.cache.keys import Key, KeyIndex
from hcpdiff.data.cache.shards import ShardInfo, map_shard, read_info, read_keys, write_shard

ABOUT = "about.json"
_ROWS = 256  # of a shard, at most
_BYTES = 128 * 2**20  # of a shard, and of all rows that wait for theirs, about

Row = Mapping[str, Tensor]
_Shapes = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


class Table:
    """Rows of named tensors by key.

    Args:
        folder: where the shards lie; None keeps all rows in memory.
        about: what the rows were made by, in words, for people who look at the folder.
        durable: False does not wait for the disk, for a table that lasts no longer than its processes.
    """

    def __init__(self, folder: str | Path | None = None, *, about: str = "", durable: bool = True) -> None:
        self.folder = None if folder is None else Path(folder)
        self.about, self.durable = about, durable
        self._lock: FolderLock | None = None
        self._index = KeyIndex()
        self._shards: list[dict[str, Tensor] | None] = []  # None: not mapped yet
        self._infos: list[ShardInfo] = []  # of each shard, on disk
        self._starts: list[int] = []  # the first row of each shard
        self._known: set[str] = set()  # names of the shards
        self._indexed = 0  # shards that the index on disk knows
        self._waiting: dict[_Shapes, list[tuple[Key, Row]]] = {}  # rows that are not in a shard yet
        self._waiting_bytes = 0
        if self.folder is not None and self.folder.is_dir():
            self._use()
        self.refresh()

    def __len__(self) -> int:
        return len(self._index) + sum(len(rows) for rows in self._waiting.values())

    def __contains__(self, key: Key) -> bool:
        return bool(self.find([key])[0] >= 0)

    def add(self, key: Key, row: Row) -> None:
        """Store a row; it can be read after the next `flush`, which happens by itself now and then."""
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(row.items()))
        rows = self._waiting.setdefault(shapes, [])
        rows.append((key, {name: tensor.detach().cpu() for name, tensor in row.items()}))
        self._waiting_bytes += sum(tensor.nbytes for tensor in row.values())
        if len(rows) >= _ROWS:
            self._write(shapes)
        elif self._waiting_bytes >= _BYTES:
            self._write(max(self._waiting, key=lambda shapes: _nbytes(self._waiting[shapes])))

    def flush(self) -> None:
        """Make all added rows readable, and on disk durable."""
        while self._waiting:
            self._write(next(iter(self._waiting)))
        if self.folder is not None and self._indexed < len(self._infos):
            with for_speed_alone():
                write_index(self.folder, self._infos, self._index.keys)
            self._indexed = len(self._infos)

    def find(self, keys: Sequence[Key] | np.ndarray) -> np.ndarray:
        """Row numbers of keys, a list or (..., 16) uint8, in its shape; -1 where there is no row.

        A row keeps its number as long as this object lives.
        """
        return self._index.find(keys)

    def tensor(self, name: str, number: int) -> Tensor:
        """One field of one row. It is the table's own: do not change it."""
        place = bisect_right(self._starts, number) - 1
        return self._tensors(place)[name][number - self._starts[place]]

    def stack(self, name: str, numbers: Sequence[int]) -> Tensor:
        """One field of many rows, stacked."""
        return torch.stack([self.tensor(name, number) for number in numbers])

    def fields_of(self, number: int) -> Iterable[str]:
        """The names of the fields that a row has."""
        return self._tensors(bisect_right(self._starts, number) - 1).keys()

    def row(self, key: Key) -> dict[str, Tensor]:
        """One row. The tensors are the table's own: do not change them."""
        number = self._number(key)
        return {name: self.tensor(name, number) for name in self.fields_of(number)}

    def column(self, name: str, keys: Sequence[Key]) -> Tensor:
        """One field of many rows, stacked."""
        return self.stack(name, [self._number(key) for key in keys])

    def fields(self, key: Key) -> Iterable[str]:
        """The names of the fields that a row has."""
        return self.fields_of(self._number(key))

    def refresh(self) -> None:
        """See what other processes have added to the folder."""
        if self.folder is None:
            return
        new = {name: nbytes for name, nbytes in shard_files(self.folder).items() if name not in self._known}
        if not new:
            return
        indexed = read_index(self.folder) if len(new) > 1 else {}
        found: list[tuple[ShardInfo, np.ndarray]] = []
        for name, nbytes in new.items():
            entry = indexed.get(name)
            if entry is not None and entry[0].nbytes == nbytes:
                found.append(entry)
                continue
            try:
                info = read_info(self.folder / name)
                found.append((info, read_keys(self.folder / name, info)))
            except (OSError, KeyError, ValueError, TypeError, AttributeError):
                continue  # not a whole shard of ours, so its rows are not here: they are computed again
        self._known.update(info.name for info, _ in found)
        if not self._infos and all(name in indexed for name in new):
            self._indexed = len(found)
        self._place([info for info, _ in found], [keys for _, keys in found], [None] * len(found))

    def map_all(self) -> None:
        """Map every shard now, so that its rows stay readable even if its file is removed."""
        for place in range(len(self._shards)):
            self._tensors(place)

    def close(self) -> None:
        """Let others delete from the folder; the rows that are mapped stay readable."""
        if self._lock is not None:
            self._lock.release()

    def _use(self) -> None:
        """Keep others from deleting what this table reads, and say what it is."""
        if self._lock is not None or self.folder is None:
            return
        self._lock = FolderLock(self.folder)
        self._lock.share()

    def _number(self, key: Key) -> int:
        number = int(self.find([key])[0])
        if number < 0:
            raise KeyError(key.hex())
        return number

    def _tensors(self, place: int) -> dict[str, Tensor]:
        tensors = self._shards[place]
        if tensors is None:
            assert self.folder is not None
            info = self._infos[place]
            tensors = self._shards[place] = map_shard(self.folder / info.name, info)
        return tensors

    def _write(self, shapes: _Shapes) -> None:
        rows = self._waiting.pop(shapes)
        self._waiting_bytes -= _nbytes(rows)
        keys = np.frombuffer(b"".join(key for key, _ in rows), dtype=np.uint8).reshape(len(rows), -1)
        fields = {name: torch.stack([row[name] for _, row in rows]) for name, *_ in shapes}
        if self.folder is None:
            self._place([], [keys], [fields])
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._use()
        if self.about and not (self.folder / ABOUT).exists():
            write_durably(self.folder / ABOUT, json.dumps({"about": self.about}).encode())
        info = write_shard(self.folder, keys, fields, sync=self.durable)
        if info.name not in self._known:
            self._known.add(info.name)
            self._place([info], [keys], [None])

    def _place(
        self, infos: Sequence[ShardInfo], keys: Sequence[np.ndarray], shards: Sequence[dict[str, Tensor] | None]
    ) -> None:
        if not keys:
            return
        ends = np.cumsum([len(part) for part in keys])
        self._starts += [len(self._index) + int(end) - len(part) for end, part in zip(ends, keys, strict=True)]
        self._index.append(np.concatenate(keys))
        self._infos += infos
        self._shards += shards


def _nbytes(rows: Sequence[tuple[Key, Row]]) -> int:
    return len(rows) * sum(tensor.nbytes for tensor in rows[0][1].values())
