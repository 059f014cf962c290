"""The manifest of a run's data: each image, how it was cut, and how often it was shown.

What it says of showings is counted in the plan that the batches are made by, so it proves what a run has seen.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hcpdiff.data.scan import attempt
from hcpdiff.data.seeing.geometry import Geometry

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

COLUMNS = ("key", "height", "width", "target", "crop_loss", "captioned", "repeat", "seen")


@dataclass(frozen=True)
class Counted:
    """How often the first batches of a run showed each image."""

    seen: np.ndarray  # (N,) rows that count in the loss
    whole: np.ndarray  # (N,) those of whole epochs
    epochs: int  # whole ones
    rest: int  # batches after them
    readable: np.ndarray  # (N,) bool: False for images that the run could not read, which others stood in for


def write(folder: Path, dataset: Dataset, batches: int) -> str:
    """Write `<name>.csv`, and `<name>.bad.csv` with the images that were left out and why.

    Args:
        folder: made if it is missing.
        batches: how many batches of the dataset the run has had.

    Returns:
        A line that says how many images were seen exactly as often as they should be.
    """
    counted = count(dataset, batches)
    name, samples, geometry = file_name(dataset.name), dataset.samples, Geometry(dataset)
    sizes = np.asarray(samples.targets, dtype=np.int64).reshape(-1, 2).tolist()
    texts = np.array([*(f"{height}x{width}" for height, width in sizes), ""], dtype=object)  # -1: the last
    targets = texts[geometry.index].tolist()
    loss = np.round(geometry.mean_crop_loss, 4).tolist()
    repeats = [int(value) if value == int(value) else value for value in samples.items.repeats.tolist()]
    heights, widths = samples.items.sizes[:, 0].tolist(), samples.items.sizes[:, 1].tolist()
    with written(folder / f"{name}.csv") as file:
        table: Any = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        keys = map(samples.items.key, range(len(heights)))
        cut_to = (" ".join(filter(None, sizes)) for sizes in targets)
        table.writerows(
            zip(keys, heights, widths, cut_to, loss, _captioned(dataset), repeats, counted.seen.tolist(), strict=True)
        )
    with written(folder / f"{name}.bad.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("key", "reason"))
        table.writerows((bad.key, bad.reason) for bad in dataset.bad)
    return describe(dataset, counted)


def count(dataset: Dataset, batches: int) -> Counted:
    """Count the showings of each image in the first `batches` batches of a run."""
    samples = dataset.samples
    size = len(samples.items)
    bad = {file.key for file in dataset.bad}
    readable = np.array([samples.items.key(i) not in bad for i in range(size)]) if bad else np.ones(size, dtype=bool)
    seen, whole = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    epoch, left = 0, batches
    while left > 0:
        plan = dataset.epoch(epoch)
        here = min(left, len(plan))
        rows = np.arange(int(plan.starts[here])) - np.repeat(plan.starts[:here], np.diff(plan.starts[: here + 1]))
        real = rows < np.repeat(plan.real[:here], np.diff(plan.starts[: here + 1]))
        numbers = plan.samples[: plan.starts[here]][real]
        items = samples.item_of[numbers]
        for place in np.flatnonzero(~readable[items]).tolist():
            items[place] = _stand_in(dataset, epoch, int(numbers[place]), readable)
        seen += np.bincount(items, minlength=size)
        left -= here
        epoch += 1
        if here == len(plan):
            whole = seen.copy()
    epochs, rest = dataset.epochs.locate(batches)
    return Counted(seen, whole, epochs, rest, readable)


def describe(dataset: Dataset, counted: Counted) -> str:
    """How many images were seen exactly as often as they should be, in words."""
    name = f"data.{dataset.name}"
    if not counted.epochs:
        shown = int((counted.seen > 0).sum())
        return f"{name}: {counted.rest} batches, not a whole epoch, have shown {shown} of {len(counted.seen)} images"
    sizes = Geometry(dataset).has.sum(axis=1)
    repeats = dataset.samples.items.repeats
    away = np.abs(counted.whole - repeats * counted.epochs * sizes)
    # With a fractional repeat it is, at each size, the whole number below or the one above.
    exact = np.where(repeats == np.round(repeats), away == 0, away < sizes) & counted.readable
    epochs = "1 epoch" if counted.epochs == 1 else f"{counted.epochs} epochs"
    often = "exactly repeat times an epoch" + (" at each of their sizes" if sizes.max() > 1 else "")
    line = f"{name}: in {epochs} {exact.sum():,} of {len(exact):,} images were seen {often}"
    if unreadable := int((~counted.readable).sum()):
        line += f"; {unreadable} could not be read and others stood in for them"
    if counted.rest:
        line += f"; and {counted.rest} batches of the next epoch were shown"
    return line


def file_name(name: str) -> str:
    """A dataset's name as a part of a file's name: nothing in it leads to another folder."""
    return re.sub(r"[^\w.-]|^\.", "_", name)


@contextmanager
def written(path: Path) -> Iterator[IO[str]]:
    """A text file that is there whole or not at all; what is no Unicode is written as escapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _captioned(dataset: Dataset) -> Iterator[int]:
    """1 for each image that has a caption, else 0."""
    items = dataset.samples.items
    for source, local in zip(items.source.tolist(), items.local.tolist(), strict=True):
        captions = attempt(lambda source=source, local=local: dataset.sources[source].captions(local), "", [])
        yield int(any(captions or ()))


def _stand_in(dataset: Dataset, epoch: int, number: int, readable: np.ndarray) -> int:
    """The image that was shown instead of one that cannot be read."""
    samples = dataset.samples
    for row in samples.stand_ins(epoch, number):
        item = int(samples.item_of[row])
        if readable[item]:
            return item
    return int(samples.item_of[number])
