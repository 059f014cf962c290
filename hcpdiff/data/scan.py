"""Looking over all sources once: which images there are, how big they are, and which cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hcpdiff.data.sources.base import Source

T = TypeVar("T")


@dataclass(frozen=True)
class BadFile:
    """An image that is left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Items:
    """The usable images of a dataset, numbered 0 to N - 1 over all its sources."""

    keys: list[str]
    source: np.ndarray  # (N,) which source
    local: np.ndarray  # (N,) number within it
    sizes: np.ndarray  # (N, 2) (height, width)
    repeats: np.ndarray  # (N,) how often an epoch shows it

    def __len__(self) -> int:
        return len(self.keys)


def scan(sources: Sequence[Source], where: str) -> tuple[Items, list[BadFile]]:
    """Read the size of every image; those that cannot be read are listed instead.

    Raises:
        ValueError, FileNotFoundError: a source has a mistake; the message begins with `where`.
    """
    keys: list[str] = []
    rows: list[tuple[int, int, int, int, int]] = []
    bad: list[BadFile] = []
    for number, source in enumerate(sources):
        with located(where if len(sources) == 1 else f"{where}[{number}]"):
            count = len(source)
            repeats = np.broadcast_to(np.asarray(getattr(source, "repeat", 1), dtype=np.int64), (count,))
            for local in range(count):
                key = source.key(local) if len(sources) == 1 else f"{number}/{source.key(local)}"
                size = attempt(lambda source=source, local=local: source.size(local), key, bad)
                if size is not None:
                    keys.append(key)
                    rows.append((number, local, size[0], size[1], int(repeats[local])))
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return Items(keys, table[:, 0], table[:, 1], table[:, 2:4], table[:, 4]), bad


def attempt(read: Callable[[], T], key: str, bad: list[BadFile]) -> T | None:
    """What `read` gives; if the file is broken, None, and a line in `bad`.

    Decoders of broken files raise nearly any exception (OSError, SyntaxError, struct.error ...), so all are caught
    here, and only here; none is lost, each is listed with its reason.
    """
    try:
        return read()
    except Exception as error:
        bad.append(BadFile(key, f"{type(error).__name__}: {error}"))
        return None


def check_bad(bad: Sequence[BadFile], total: int, max_bad: float, where: str) -> None:
    """Stop if more images are bad than is allowed.

    Args:
        bad: those that are.
        total: how many images there are altogether.
        max_bad: a share of all below 1, else a number of images.
        where: of the dataset, in the config.
    """
    if not total:
        raise ValueError(f"{where}.source: it has no images")
    limit = max_bad * total if max_bad < 1 else max_bad
    if len(bad) > limit or (bad and len(bad) == total):
        lines = "".join(f"\n  {file.key}: {file.reason}" for file in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise ValueError(
            f"{where}.source: {len(bad)} of {total} images cannot be used; mend them, or raise {where}.max_bad "
            f"(now {max_bad}):{lines}{more}"
        )


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place in the config before the message of a user's mistake."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}.{error}") from error
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
