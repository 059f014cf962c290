"""Which samples a dataset has, by number, and which of them each epoch shows."""

from __future__ import annotations

import numpy as np

_ONE = 1 << 32  # repeats and starting points are whole numbers of 1 / _ONE, so that no rounding moves a showing


class Numbering:
    """Samples are numbered by item, then by its resolutions, then by copy.

    With a repeat r, an item is shown at each of its resolutions floor((e + 1) r + u) - floor(e r + u) times in epoch e,
    where u in [0, 1) depends on the seed and the item: in n epochs n r times, give or take less than one.

    Args:
        columns: (N, K) targets of each item at each resolution; -1: the item lacks it.
        repeats: (N,) how often an epoch shows each item; any number from 0 up.
        targets: how many there are.
        seed: decides u.
    """

    def __init__(self, columns: np.ndarray, repeats: np.ndarray, targets: int, seed: int) -> None:
        has = columns >= 0
        self.resolutions = columns.shape[1]
        self._columns = columns
        self._targets = targets
        item, column = (part.astype(np.int32) for part in np.nonzero(has))  # of each unit: an item at a resolution
        rate = np.round(np.asarray(repeats, dtype=np.float64) * _ONE).astype(np.int64)
        self.steady = not (rate % _ONE).any()
        copies = ((rate + _ONE - 1) // _ONE)[item]
        self._unit_of = np.repeat(np.arange(len(item), dtype=np.int32), copies)
        self._first = np.cumsum(copies) - copies  # sample of each unit
        self._rate = rate[item]
        self._start = _scattered(item.astype(np.uint64) * np.uint64(self.resolutions) + column.astype(np.uint64), seed)
        self._target = columns[item, column]
        self._column = column
        self.item_of = item[self._unit_of]  # (M,) int32
        self._groups: tuple[int, list[np.ndarray]] | None = None

    def __len__(self) -> int:
        return len(self._unit_of)

    def groups(self, epoch: int) -> list[np.ndarray]:
        """The samples that an epoch shows, by target: (n,) int32 each, ascending."""
        known = 0 if self.steady else epoch
        latest = self._groups
        if latest is None or latest[0] != known:
            self._groups = latest = (known, self._grouped(known))
        return latest[1]  # not of `_groups`, which another thread may have changed

    def group_sizes(self, epoch: int) -> np.ndarray:
        """How many samples of each target an epoch shows, (targets,)."""
        shown = self._shown(epoch)
        return np.bincount(self._target, weights=shown, minlength=self._targets).astype(np.int64)

    def showing(self, epoch: int, number: int) -> int:
        """How often the item of a sample was shown before, at the same resolution and over all epochs."""
        unit = self._unit_of[number]
        return int(self._before(epoch, unit) + number - self._first[unit])

    def column_of(self, number: int) -> int:
        """Which of the resolutions a sample has."""
        return int(self._column[self._unit_of[number]])

    def columns_of(self, item: int) -> list[int]:
        """The resolutions that an item has."""
        return np.flatnonzero(self._columns[item] >= 0).tolist()

    def target(self, item: int, column: int) -> int:
        """The target of an item at a resolution; if it lacks that, at its first."""
        target = int(self._columns[item, column])
        return target if target >= 0 else int(self._columns[item, self.columns_of(item)[0]])

    def target_of(self, number: int) -> int:
        """The target of a sample."""
        return int(self._target[self._unit_of[number]])

    def targets_of(self, numbers: np.ndarray) -> np.ndarray:
        """The targets of samples."""
        return self._target[self._unit_of[numbers]]

    def _before(self, epoch: int, unit: np.ndarray | slice = slice(None)) -> np.ndarray:
        """How often units were shown before an epoch."""
        return (epoch * self._rate[unit] + self._start[unit]) // _ONE

    def _shown(self, epoch: int) -> np.ndarray:
        return self._before(epoch + 1) - self._before(epoch)

    def _grouped(self, epoch: int) -> list[np.ndarray]:
        numbers = np.arange(len(self), dtype=np.int32)
        if not self.steady:
            numbers = numbers[numbers - self._first[self._unit_of] < self._shown(epoch)[self._unit_of]]
        target = self._target[self._unit_of[numbers]]
        numbers = numbers[np.argsort(target, kind="stable")]
        return np.split(numbers, np.cumsum(np.bincount(target, minlength=self._targets))[:-1])


def _scattered(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, _ONE) for each, that looks random: SplitMix64 (Steele, Lea, Flood 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)).astype(np.int64)
