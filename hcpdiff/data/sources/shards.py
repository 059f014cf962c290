"""Tar archives of samples, by the WebDataset convention, read in place: nothing is ever extracted.

The members of a sample share their name up to the first dot of the last part: `dir/0001.jpg`, `dir/0001.txt` and
`dir/0001.mask.png` are the members "jpg", "txt" and "mask.png" of sample `dir/0001`. The names are only names: what
looks like a path out of the archive does no harm, and links and folders are passed over.
"""

from __future__ import annotations

import glob
import hashlib
import io
import re
import tarfile
import zipfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hcpdiff.data.cache import write_durably

_BLOCK = 512
_FORMAT = 1  # of the kept index
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Members:
    """The files of one archive, in its order."""

    names: list[str]
    places: np.ndarray  # (N, 2) int64: offset and size in bytes


def shard_paths(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    """Existing archives from a path, a path with braces like `{000..010}` or `{a,b}`, a pattern with *, or a list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is an address or a command, or a file is named twice.
    """
    found: list[Path] = []
    for option in [shards] if isinstance(shards, (str, Path)) else shards:
        text = str(Path(option).expanduser()) if "://" not in str(option) else str(option)
        if "://" in text or text.startswith("pipe:"):
            raise ValueError(f"shards: {option} is not a local file, and nothing is downloaded; fetch the shards first")
        for name in [text] if Path(text).is_file() else expand_braces(text):
            paths = [Path(name)] if Path(name).is_file() else [Path(match) for match in sorted(glob.glob(name))]
            if not paths:
                raise FileNotFoundError(f"shards: no file at {name}; give .tar files, e.g. data/{{000..010}}.tar")
            found += paths
    if not found:
        raise ValueError("shards: the list is empty; give .tar files, e.g. data/{000..010}.tar")
    if len(set(found)) < len(found):
        double = next(path for path in found if found.count(path) > 1)
        raise ValueError(f"shards: {double} is named twice; name it once, and set repeat to show it more often")
    return found


def expand_braces(text: str) -> list[str]:
    """`a{1,2}` as a1, a2; `{08..10}` as 08, 09, 10; like a shell does."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span is not None:
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        step = 1 if last >= first else -1
        options = [str(number).zfill(width) for number in range(first, last + step, step)]
    elif "," in match[1]:
        options = match[1].split(",")
    else:
        raise ValueError(f"shards: {{{match[1]}}} is neither a range like {{000..010}} nor a list like {{a,b}}")
    return [
        whole for option in options for whole in expand_braces(text[: match.start()] + option + text[match.end() :])
    ]


def members(path: Path, index: Path | None = None) -> Members:
    """The files in an archive, from its headers, or from an index of earlier if the archive is unchanged.

    Args:
        path: of the archive.
        index: folder where the index is kept; None: nowhere.

    Raises:
        ValueError: the archive is broken, cut short or compressed.
    """
    if index is None:
        return _read_headers(path)
    stat = path.stat()
    stamp = np.array([_FORMAT, stat.st_mtime_ns, stat.st_size], dtype=np.int64)
    kept = index / f"{hashlib.blake2b(str(path.resolve()).encode(), digest_size=16).hexdigest()}.npz"
    found = _kept_members(kept, stamp)
    if found is None:
        found = _read_headers(path)
        content = io.BytesIO()
        names = "\0".join(found.names).encode("utf-8", "surrogateescape")
        np.savez(content, stamp=stamp, names=np.frombuffer(names, dtype=np.uint8), places=found.places)
        index.mkdir(parents=True, exist_ok=True)
        write_durably(kept, content.getvalue())
    return found


def split_name(name: str) -> tuple[str, str]:
    """(sample, member) of a file: `dir/0001.mask.png` as (`dir/0001`, `mask.png`); ("", "") if it is of no sample."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, member = file.partition(".")
    return (folder + slash + stem, member.lower()) if stem and dot else ("", "")


def read_member(path: Path, place: np.ndarray) -> bytes:
    """The content of a member.

    Raises:
        OSError: the archive ends before it.
    """
    offset, size = int(place[0]), int(place[1])
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"{path} ends within a member; it was changed or cut short")
    return data


class Section(io.RawIOBase):
    """Part of a file as a file, so that the header of an image is read without the rest."""

    def __init__(self, path: Path, place: np.ndarray) -> None:
        self._file = path.open("rb")
        self._start, self._size = int(place[0]), int(place[1])
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_headers(path: Path) -> Members:
    names: list[str] = []
    places = array("q")
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or they would all be kept
                if member.isreg() and not member.issparse():
                    names.append(member.name)
                    places.extend((member.offset_data, member.size))
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"shards: {path} {_why(path, error)}") from error
    with path.open("rb") as file:  # tarfile takes a broken header for the end
        file.seek(end)
        if file.read(_BLOCK).strip(b"\0"):
            raise ValueError(f"shards: {path} is broken at byte {end}; fetch or pack it again")
    return Members(names, np.array(places, dtype=np.int64).reshape(-1, 2))


def _why(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(6)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed with {name}, so images cannot be read in any order; unpack it to a plain .tar"
    return f"cannot be read as a tar archive ({error}); fetch or pack it again"


def _kept_members(path: Path, stamp: np.ndarray) -> Members | None:
    """From an index of earlier, if it is whole and of this archive."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            names = kept["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            places = kept["places"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, or not whole: the headers are read again
    return Members(names if len(places) else [], places) if len(places) in (len(names), 0) else None
