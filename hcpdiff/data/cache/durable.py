"""Files that are whole or not there, and locks that end with the process that holds them."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which lets no one delete a file that is in use
    fcntl = None

LOCK = ".lock"
TEMPORARY = ".tmp"  # suffix of files that are being written
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # what others filled, and this user only reads
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems


def write_durably(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file so that, whatever happens, it is there with all of its content or not at all.

    Args:
        sync: False does not wait for the disk: enough against a killed process, not against a power cut.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk tells none, and the temporary one tells nobody anything
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


@contextmanager
def for_speed_alone() -> Iterator[None]:
    """Inside, what only makes later runs faster is written; not to a folder that this user may only read."""
    try:
        yield
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


def sync_folder(folder: Path) -> None:
    """Have new names in a folder, and removed ones, reach the disk."""
    if hasattr(os, "O_DIRECTORY"):  # POSIX
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FolderLock:
    """A lock on a folder: "shared" by all who use it, "exclusive" for who deletes from it.

    It ends with `release`, with this object, or with the process. Where there are no such locks, or the folder cannot
    be written to, it does nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: IO[bytes] | None = None

    def share(self) -> None:
        """Keep others from deleting; waits for who deletes just now. The lock file's time says when that was last."""
        while self._file is None and self._open():
            assert fcntl is not None
            assert self._file is not None
            try:
                fcntl.flock(self._file, fcntl.LOCK_SH)
            except OSError as error:
                self.release()
                if error.errno in _NO_LOCKS:
                    return
                raise
            if self._is_there(self._file):
                os.utime(self.path)
            else:  # the folder was deleted while this waited
                self.release()

    def alone(self) -> bool:
        """Try to become the only user of the folder; False if it is in use."""
        if not self._open():
            return fcntl is None
        assert fcntl is not None
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        if not self._is_there(self._file):
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        if fcntl is None:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        except OSError as error:
            if error.errno in _READ_ONLY:
                return False
            raise
        return True

    def _is_there(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False
