"""What is written appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all of it is on the disk; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path`; in one that is there already, its content replaces what is called alike.

    What is replaced may be in use until then, such as the weights that are written anew.
    """
    new = _beside(path)
    new.mkdir(parents=True)
    try:
        yield new
        if not path.exists():
            new.replace(path)
            return
        for item in new.iterdir():
            old = path / item.name
            if old.is_dir():
                shutil.rmtree(old)
            item.replace(old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
