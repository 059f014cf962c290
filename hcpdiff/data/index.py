"""What earlier runs learned of files: sizes of images and hashes of contents, so that unchanged files stay unread.

One file of 48 bytes per image: a hash of its path, its stamp (time of change, bytes), and what was learned. An entry
counts while path and stamp are equal. A file that changed within the last two seconds is not remembered: it could
change again without a change of its stamp.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hcpdiff.data.cache import write_durably
from hcpdiff.data.cache.durable import for_speed_alone
from hcpdiff.data.sources.base import Stamps

_MAGIC = b"hcpdiff files 1\n"
_CHECK = 16  # bytes of the checksum after it
_SETTLED = 2 * 10**9  # ns; the coarsest clock of a file system in use ticks every two seconds
_SAVE_EVERY = 60  # seconds, while files are hashed
_ROW = np.dtype(
    [
        ("name", "<u8"),  # hash of the absolute path
        ("mtime", "<i8"),
        ("bytes", "<i8"),
        ("size", "<i4", 2),  # (height, width); 0: not known
        ("content", "u1", 16),  # hash of the content; zeros: not known
    ]
)
_NO_CONTENT = bytes(16)


class FileIndex:
    """Sizes and content hashes of files, kept in a folder from run to run; runs and datasets may share it.

    What another process saves meanwhile is kept. A broken file is as good as none. In another process (pickled) it
    reads what was saved.

    Args:
        folder: where it lies; made when it is saved.
        least: files; what is known of fewer is not worth a folder, and is not saved.
    """

    def __init__(self, folder: str | Path, *, least: int = 0) -> None:
        self.path = Path(folder) / "files.index"
        self._least = least
        self._new: dict[int, tuple[tuple[int, int], bytes]] = {}  # hash of the path -> stamp, hash of the content
        self._changed = False
        self._saved_at = time.monotonic()

    def sizes(self, stamps: Stamps) -> np.ndarray:
        """(N, 2) int32 (height, width) of the images; 0 where none is known."""
        sizes = np.zeros((len(stamps.names), 2), dtype=np.int32)
        if len(self._rows):
            names = _hash_names(stamps.names)
            places = np.searchsorted(self._names, names).clip(max=len(self._rows) - 1)
            known = self._names[places] == names
            for field, stamp in (("mtime", stamps.mtimes), ("bytes", stamps.sizes)):
                known &= self._rows[field][places] == stamp
            sizes[known] = self._rows["size"][places[known]]
        return sizes

    def add_sizes(self, stamps: Stamps, which: np.ndarray, sizes: np.ndarray, read_at: int) -> None:
        """Remember the sizes of some images.

        Args:
            stamps: of all images of a source.
            which: (M,) numbers of those whose header was read.
            sizes: (M, 2), (height, width).
            read_at: when reading began, `time.time_ns()`.
        """
        settled = (stamps.mtimes[which] + _SETTLED < read_at) & (stamps.sizes[which] >= 0)
        which = which[settled]
        numbers: list[int] = which.tolist()
        rows = np.zeros(len(which), dtype=_ROW)
        rows["name"] = _hash_names([stamps.names[number] for number in numbers])
        rows["mtime"], rows["bytes"], rows["size"] = stamps.mtimes[which], stamps.sizes[which], sizes[settled]
        self._put(rows)

    def fingerprint(self, path: str) -> str:
        """Hash of the content of a file, in hex; `path` is absolute.

        Raises:
            OSError: it cannot be read.
        """
        stat, name = os.stat(path), _hash_name(path)
        stamp = stat.st_mtime_ns, stat.st_size
        content = self._content(name, stamp)
        if content is None:
            now = time.time_ns()
            content = hash_file(path)
            if stamp[0] + _SETTLED < now:
                self._new[name] = stamp, content
            if time.monotonic() - self._saved_at > _SAVE_EVERY:
                self.save()
        return content.hex()

    def save(self) -> None:
        """Write what is new, if anything is; after this it outlives a crash."""
        if self._new:
            rows = np.zeros(len(self._new), dtype=_ROW)
            rows["name"] = list(self._new)
            rows["mtime"], rows["bytes"] = np.array([stamp for stamp, _ in self._new.values()]).T
            contents = b"".join(content for _, content in self._new.values())
            rows["content"] = np.frombuffer(contents, dtype=np.uint8).reshape(-1, 16)
            self._put(rows)
            self._new = {}
        if self._changed and len(self._rows) >= self._least:
            self._use(_merge(_read(self.path), self._rows))
            content = self._rows.tobytes()
            with for_speed_alone():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(self.path, b"".join((_MAGIC, _checksum(content), content)))
            self._changed = False
        self._saved_at = time.monotonic()

    def _content(self, name: int, stamp: tuple[int, int]) -> bytes | None:
        if name in self._new:
            known, content = self._new[name]
            return content if known == stamp else None
        place = int(np.searchsorted(self._names, np.uint64(name)))
        if place == len(self._rows):
            return None
        row = self._rows[place]
        if (int(row["name"]), int(row["mtime"]), int(row["bytes"])) != (name, *stamp):
            return None
        content = row["content"].tobytes()
        return None if content == _NO_CONTENT else content

    @cached_property
    def _rows(self) -> np.ndarray:
        return _read(self.path)  # sorted by name, each name once

    @cached_property
    def _names(self) -> np.ndarray:
        return np.ascontiguousarray(self._rows["name"])

    def _put(self, rows: np.ndarray) -> None:
        if len(rows):
            self._use(_merge(self._rows, rows))
            self._changed = True

    def _use(self, rows: np.ndarray) -> None:
        self._rows = rows
        self.__dict__.pop("_names", None)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_least": self._least, "_new": {}, "_changed": False, "_saved_at": time.monotonic()}


def hash_file(path: str | Path) -> bytes:
    """BLAKE2b of a file's content, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _merge(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Both, sorted by name. Of equal names the new one stays, with what the old one knew of the same file."""
    rows = np.concatenate([old, new])
    rows = rows[np.argsort(rows["name"], kind="stable")]
    older = np.flatnonzero(rows["name"][1:] == rows["name"][:-1])
    newer = older + 1
    same = (rows["mtime"][older] == rows["mtime"][newer]) & (rows["bytes"][older] == rows["bytes"][newer])
    older, newer = older[same], newer[same]
    for field in ("size", "content"):
        lacks = (rows[field][newer] == 0).all(axis=1)
        rows[field][newer[lacks]] = rows[field][older[lacks]]
    return rows[np.append(rows["name"][1:] != rows["name"][:-1], True)] if len(rows) else rows


def _read(path: Path) -> np.ndarray:
    content = path.read_bytes() if path.is_file() else b""
    begin = len(_MAGIC) + _CHECK
    body = memoryview(content)[begin:]
    whole = content.startswith(_MAGIC) and len(body) % _ROW.itemsize == 0
    if not whole or content[len(_MAGIC) : begin] != _checksum(body):
        return np.zeros(0, dtype=_ROW)
    return np.frombuffer(body, dtype=_ROW)


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK).digest()


def _hash_name(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _hash_names(paths: Iterable[str]) -> np.ndarray:
    """(N,) uint64; in parts, so that a million paths never are a million objects at once."""
    parts = [np.zeros(0, dtype="<u8")]
    remaining = iter(paths)
    while part := list(islice(remaining, 1 << 16)):
        digests = b"".join([hashlib.blake2b(os.fsencode(path), digest_size=8).digest() for path in part])
        parts.append(np.frombuffer(digests, dtype="<u8"))
    return np.concatenate(parts)
