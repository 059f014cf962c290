"""Looking over all sources once: which images there are, how big they are, and which cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from hcpdiff.data.index import FileIndex
from hcpdiff.data.sources.base import Source, Stamps

T = TypeVar("T")
ShowProgress = Callable[[int, int], None]  # (done, total)

_PART = 256  # images that are looked at between two reports of progress
_THREADS = 16  # that wait for a slow disk together


@dataclass(frozen=True)
class BadFile:
    """An image that is left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Items:
    """The usable images of a dataset, numbered 0 to N - 1 over all its sources; arrays only, for there may be many."""

    sources: Sequence[Source]
    source: np.ndarray  # (N,) int16, which source
    local: np.ndarray  # (N,) int32, number within it
    sizes: np.ndarray  # (N, 2) int32, (height, width)
    repeats: np.ndarray  # (N,) float64, how often an epoch shows it

    def __len__(self) -> int:
        return len(self.local)

    def key(self, item: int) -> str:
        """A name that is unique over the dataset; of several sources, `<number of the source>/<its key>`."""
        return _key(self.sources, int(self.source[item]), int(self.local[item]))


def scan(
    sources: Sequence[Source],
    where: str,
    *,
    index: FileIndex | str | Path | None = None,
    progress: ShowProgress | None = None,
) -> tuple[Items, list[BadFile]]:
    """Find the size of every image; those that cannot be read are listed instead.

    Args:
        sources: of the dataset.
        where: they are in the config.
        index: what earlier runs learned of files, or the folder where it lies; brought up to date, saved, and given to
            the sources.
        progress: is told how many images are done, of how many.

    Raises:
        ValueError, FileNotFoundError: a source has a mistake; the message begins with `where`.
    """
    if isinstance(index, (str, Path)):
        index = FileIndex(index)
    places = [where if len(sources) == 1 else f"{where}[{number}]" for number in range(len(sources))]
    counts, repeats = [], []
    for source, place in zip(sources, places, strict=True):
        with located(place):
            counts.append(len(source))
            if hasattr(source, "check"):
                source.check()  # type: ignore[attr-defined]
            repeats.append(_repeats(source, counts[-1]))
    bad: list[BadFile] = []
    used: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for number, source in enumerate(sources):
        done = sum(counts[:number])
        tell = None if progress is None else _after(progress, done, sum(counts))
        with located(places[number]):
            if index is not None and hasattr(source, "use_index"):
                source.use_index(index)  # type: ignore[attr-defined]
            found, failed = _sizes(source, counts[number], index, tell)
        bad += [BadFile(_key(sources, number, local), reason) for local, reason in failed]
        used.append(np.flatnonzero((found > 0).all(axis=1)).astype(np.int32))
        sizes.append(found[used[-1]])
    if index is not None:
        index.save()
    items = Items(
        sources,
        np.repeat(np.arange(len(sources), dtype=np.int16), [len(local) for local in used]),
        np.concatenate(used),
        np.concatenate(sizes),
        np.concatenate([all_[local] for all_, local in zip(repeats, used, strict=True)]),
    )
    return items, bad


def attempt(read: Callable[[], T], key: str, bad: list[BadFile]) -> T | None:
    """What `read` gives; if the file is broken, None, and a line in `bad`.

    Decoders of broken files raise nearly any exception (OSError, SyntaxError, struct.error ...), so all are caught
    here and in `_read_sizes`, and only there; none is lost, each is listed with its reason.
    """
    try:
        return read()
    except Exception as error:
        bad.append(BadFile(key, _reason(error)))
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


def _sizes(
    source: Source, count: int, index: FileIndex | None, tell: Callable[[int], None] | None
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """(N, 2) int32 of a source's images, 0 where an image is bad; and the number and reason of each that is."""
    sizes, stamps = _known(source, count, index)
    todo = np.flatnonzero((sizes <= 0).any(axis=1))
    began = time.time_ns()
    bad: list[tuple[int, str]] = []
    done = count - len(todo)
    for part, found, failed in _read_all(source, todo, threads=stamps is not None):
        sizes[part] = found
        bad += failed
        done += len(part)
        if tell is not None:
            tell(done)
    if index is not None and stamps is not None:
        read = todo[(sizes[todo] > 0).all(axis=1)]
        index.add_sizes(stamps, read, sizes[read], began)
    return sizes, bad


def _known(source: Source, count: int, index: FileIndex | None) -> tuple[np.ndarray, Stamps | None]:
    """The sizes that need no reading, else 0; and the stamps of the files, if reading them pays off for later runs."""
    at_once: Callable[[], np.ndarray | None] | None = getattr(source, "sizes", None)
    sizes = None if at_once is None else at_once()
    if sizes is not None:
        if np.shape(sizes) != (count, 2):
            raise ValueError(f"sizes: their shape is {np.shape(sizes)}; it should be ({count}, 2)")
        return np.array(sizes, dtype=np.int32), None
    stamps: Stamps | None = getattr(source, "stamps", lambda: None)()
    if index is None or stamps is None:
        return np.zeros((count, 2), dtype=np.int32), stamps
    return index.sizes(stamps), stamps


_Part = tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]  # numbers, their sizes, and (number, reason) of the bad


def _read_all(source: Source, todo: np.ndarray, *, threads: bool) -> Iterator[_Part]:
    """The sizes of these images, part by part; by many threads from where the disk proves to be what is slow."""
    parts = [todo[i : i + _PART] for i in range(0, len(todo), _PART)]
    for done, part in enumerate(parts, 1):
        wall, work = time.perf_counter(), time.thread_time()
        yield _read_sizes(source, part)
        if threads and time.perf_counter() - wall > 4 * (time.thread_time() - work) + 0.1:
            pool = ThreadPoolExecutor(_THREADS)
            try:
                yield from pool.map(lambda part: _read_sizes(source, part), parts[done:])
            finally:
                pool.shutdown(cancel_futures=True)  # at once, if the user interrupts it
            return


def _read_sizes(source: Source, part: np.ndarray) -> _Part:
    sizes = np.zeros((len(part), 2), dtype=np.int32)
    bad = []
    for row, local in enumerate(part.tolist()):
        try:
            height, width = source.size(local)
            if height < 1 or width < 1:
                raise ValueError(f"{height} x {width} is no size")
            sizes[row] = height, width
        except Exception as error:  # see `attempt`
            sizes[row] = 0
            bad.append((local, _reason(error)))
    return part, sizes, bad


def _repeats(source: Source, count: int) -> np.ndarray:
    repeat = np.asarray(getattr(source, "repeat", 1), dtype=np.float64)
    if repeat.shape not in ((), (count,)):
        raise ValueError(f"repeat: its shape is {repeat.shape}; use one number, or one for each of {count} images")
    if not (np.isfinite(repeat) & (repeat >= 0)).all():
        raise ValueError("repeat: use numbers of 0 or more")
    return np.broadcast_to(repeat, (count,))


def _key(sources: Sequence[Source], number: int, local: int) -> str:
    key = sources[number].key(local)
    return key if len(sources) == 1 else f"{number}/{key}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _after(progress: ShowProgress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)
