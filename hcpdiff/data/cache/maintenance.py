"""Looking after caches on disk: what is in them, whether it is sound, and what may go."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hcpdiff.data.cache.durable import TEMPORARY, FolderLock, sync_folder
from hcpdiff.data.cache.index import INDEX, shard_files
from hcpdiff.data.cache.keys import Key, KeyIndex
from hcpdiff.data.cache.shards import ShardInfo, is_sound, map_shard, read_info, read_keys, write_shard
from hcpdiff.data.cache.table import ABOUT

KINDS = {"latents": "latents", "text": "conditioning of prompts"}
_REMOVED = ".removed-"  # how a table is called while it is deleted
_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class TableInfo:
    """One table of a cache."""

    path: Path
    kind: str  # of KINDS
    about: str  # what made it, in words
    rows: int
    nbytes: int  # of all its files
    unused_days: float  # since a run opened it last

    def __str__(self) -> str:
        return (
            f"{self.path.parent.name}/{self.path.name[:8]}: {KINDS[self.kind]} by {self.about}; {self.rows:,} entries, "
            f"{size_text(self.nbytes)}, used {_ago(self.unused_days)}"
        )


@dataclass(frozen=True)
class Freed:
    """What was deleted from one table."""

    path: Path
    why: str
    rows: int
    nbytes: int

    def __str__(self) -> str:
        table = f"{self.path.parent.name}/{self.path.name[:8]}"
        return f"{table}: {self.why}, {self.rows:,} entries, {size_text(self.nbytes)}"


def tables(folder: Path) -> list[TableInfo]:
    """The tables of a cache folder."""
    paths = [path for kind in KINDS for path in sorted((folder / kind).glob("[0-9a-f]*")) if path.is_dir()]
    return [_look(path) for path in paths]


def damaged(folder: Path, *, repair: bool = False) -> list[Path]:
    """The shards of a cache folder that are not as they were written; every byte is read.

    Args:
        repair: remove them, so that the next run computes their entries again. One in use is removed all the same, as
            what it gives is wrong.
    """
    bad = []
    for info in tables(folder):
        shards = [info.path / name for name in shard_files(info.path)]
        broken = [path for path in shards if not is_sound(path)]
        if repair and broken:
            for path in broken:
                path.unlink(missing_ok=True)
            sync_folder(info.path)
        bad += broken
    return bad


def collect(
    folder: Path, keep: Mapping[Path, Collection[Key]] | None = None, *, days: float = 0.0, dry_run: bool = False
) -> tuple[list[Freed], list[Path]]:
    """Delete what is not used any more: (what was deleted, tables that were left alone as a process uses them).

    Args:
        folder: of the cache.
        keep: the tables that are used, and the keys of the entries that are; None: any table may be.
        days: delete only from tables that no run has opened for so long.
        dry_run: only tell.
    """
    freed: list[Freed] = []
    busy: list[Path] = []
    for info in tables(folder):
        used = None if keep is None else keep.get(info.path, ())
        if info.unused_days < days:
            continue
        lock = FolderLock(info.path)
        if not lock.alone():
            busy.append(info.path)
            continue
        try:
            if used:
                freed += _sweep(info.path, used, dry_run=dry_run)
                continue
            why = f"not used for {info.unused_days:.0f} days" if keep is None else "used by none of the configs"
            freed.append(Freed(info.path, why, info.rows, info.nbytes))
            if not dry_run:
                _remove(info.path)
        finally:
            lock.release()
    if not dry_run:
        for kind in KINDS:
            for leftover in (folder / kind).glob(f"{_REMOVED}*"):  # of an earlier time that was interrupted
                shutil.rmtree(leftover, ignore_errors=True)
    return freed, busy


def size_text(nbytes: int) -> str:
    """E.g. "1.2 GB"."""
    size = float(nbytes)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB" if size < 1000 else f"{size / 1000:,.3g} TB"


def _look(path: Path) -> TableInfo:
    rows = sum(info.rows for info in _infos(path).values())
    try:
        about = str(json.loads((path / ABOUT).read_text(encoding="utf-8"))["about"])
    except (OSError, ValueError, KeyError, TypeError):
        about = "an unknown model"
    files = [file for file in path.iterdir() if file.is_file()]
    used = max((file.stat().st_mtime for file in files), default=path.stat().st_mtime)
    nbytes = sum(file.stat().st_size for file in files)
    return TableInfo(path, path.parent.name, about, rows, nbytes, max(0.0, time.time() - used) / _DAY)


def _infos(path: Path) -> dict[str, ShardInfo]:
    infos = {}
    for name in shard_files(path):
        try:
            infos[name] = read_info(path / name)
        except (OSError, KeyError, ValueError, TypeError, AttributeError):
            continue  # not a whole shard: `damaged` tells
    return infos


def _remove(path: Path) -> None:
    """Delete a table; one moment it is there, the next it is not."""
    removed = path.with_name(f"{_REMOVED}{uuid.uuid4().hex}")
    path.rename(removed)
    sync_folder(removed.parent)
    shutil.rmtree(removed)


def _sweep(path: Path, used: Collection[Key], *, dry_run: bool) -> list[Freed]:
    """Delete the entries of a table that are not used; the shards that hold them are written anew before they go."""
    wanted = KeyIndex()
    wanted.append(np.frombuffer(b"".join(sorted(used)), dtype=np.uint8).reshape(len(used), -1))
    rows = nbytes = 0
    for name, info in _infos(path).items():
        keys = read_keys(path / name, info)
        live = np.flatnonzero(wanted.find(keys) >= 0)
        if len(live) == len(keys):
            continue
        if len(live) and not is_sound(path / name):
            live = live[:0]  # written anew it would look sound; the next run computes all of it again
        rows += len(keys) - len(live)
        nbytes += info.nbytes * (len(keys) - len(live)) // len(keys)
        if dry_run:
            continue
        if len(live):
            tensors = map_shard(path / name, info)
            write_shard(path, keys[live], {field: tensor[live] for field, tensor in tensors.items()})
        (path / name).unlink()
    if not dry_run:
        for leftover in path.glob(f".*{TEMPORARY}"):
            nbytes += leftover.stat().st_size
            leftover.unlink()
        (path / INDEX).unlink(missing_ok=True)  # the next run writes it
        sync_folder(path)
    return [Freed(path, "entries that none of the configs uses", rows, nbytes)] if rows or nbytes else []


def _ago(days: float) -> str:
    return "today" if days < 1 else f"{days:.0f} days ago"
