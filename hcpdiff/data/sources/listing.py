"""Finding the images of a folder."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hcpdiff.data.images.reading import SUFFIXES


@dataclass(frozen=True)
class Listing:
    """The images below a folder, in the order of their relative paths (with forward slashes)."""

    names: list[str]
    mtimes: np.ndarray  # (N,) int64, nanoseconds
    sizes: np.ndarray  # (N,) int64, bytes; -1: not known
    unusable: dict[str, str]  # name -> reason: folders without read rights (`name/`), pipes, names that are no text


def list_images(folder: Path, *, recursive: bool = True, skip: Iterable[Path] = ()) -> list[str]:
    """Relative paths of all images below `folder`, sorted; see `list_folder`.

    Raises:
        ValueError: a subfolder cannot be read.
    """
    listing = list_folder(folder, recursive=recursive, skip=skip)
    for name, reason in listing.unusable.items():
        raise ValueError(f"{name} in {folder} cannot be used: {reason}")
    return listing.names


def list_folder(folder: Path, *, recursive: bool = True, skip: Iterable[Path] = ()) -> Listing:
    """All images below `folder`; hidden ones are left out, links are followed, each folder once.

    Args:
        skip: folders that are left out.

    Raises:
        ValueError: `folder` itself cannot be read.
    """
    walk = _Walk({_identity(other) for other in skip}, recursive)
    try:
        walk.enter(os.path.join(folder, ""), "")
    except PermissionError as error:
        raise ValueError(f"{folder} cannot be listed: {error}; give yourself the right to read it") from error
    names = walk.names
    order = sorted(range(len(names)), key=names.__getitem__)
    mtimes, sizes = np.frombuffer(walk.mtimes, dtype=np.int64), np.frombuffer(walk.sizes, dtype=np.int64)
    return Listing([names[i] for i in order], mtimes[order], sizes[order], walk.unusable)


class _Walk:
    """Collects in arrays: a folder may hold a million files."""

    def __init__(self, seen: set[tuple[int, int]], recursive: bool) -> None:
        self.seen = seen
        self.recursive = recursive
        self.names: list[str] = []
        self.mtimes, self.sizes = array("q"), array("q")
        self.unusable: dict[str, str] = {}

    def enter(self, here: str, prefix: str) -> None:
        """List one folder; `here` and `prefix` are its path and its relative path, "" or with a slash at the end."""
        identity = _identity(here)
        if identity in self.seen:
            return
        self.seen.add(identity)
        folders: list[str] = []
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if _is_folder(entry):
                    folders.append(name)
                elif os.path.splitext(name)[1].lower() in SUFFIXES:
                    self.add_file(prefix + name, entry)
        for name in sorted(folders) if self.recursive else ():
            if not _is_text(name):
                self.leave_out(prefix + name + "/", "its name is not UTF-8; rename it")
                continue
            try:
                self.enter(f"{here}{name}/", f"{prefix}{name}/")
            except OSError as error:
                self.leave_out(f"{prefix}{name}/", str(error))

    def add_file(self, name: str, entry: os.DirEntry[str]) -> None:
        """Add an image with its stamp."""
        try:
            state = entry.stat()
        except OSError:  # a link to nowhere: whoever opens it says so
            self.append(name, 0, -1)
            return
        if not stat.S_ISREG(state.st_mode):
            self.leave_out(name, "it is no regular file")
        elif not _is_text(name):
            self.leave_out(name, "its name is not UTF-8; rename it")
        else:
            self.append(name, state.st_mtime_ns, state.st_size)

    def leave_out(self, name: str, reason: str) -> None:
        """Add what cannot be used, so that it is reported under its name."""
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
        self.unusable[name] = reason
        self.append(name, 0, -1)

    def append(self, name: str, mtime: int, size: int) -> None:
        self.names.append(name)
        self.mtimes.append(mtime)
        self.sizes.append(size)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_text(name: str) -> bool:
    """Whether it can be printed and saved; file systems allow any bytes as a name."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(folder: str | Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino
