"""Batches of equal size from items that come one after the other, with a bounded number of them in memory."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TypeVar

import numpy as np

from hcpdiff.data.scan import BadFile
from hcpdiff.data.sources.streamed import StreamItem, StreamSource
from hcpdiff.randomness import python_random

T = TypeVar("T")


def shuffled(items: Iterable[T], count: int, rng: random.Random) -> Iterator[T]:
    """The items in random order, as far as holding `count` of them allows; 1 or less keeps their order."""
    held: list[T] = []
    for item in items:
        if len(held) < count - 1:
            held.append(item)
        elif not held:
            yield item
        else:
            place = rng.randrange(len(held) + 1)
            if place < len(held):
                item, held[place] = held[place], item
            yield item
    rng.shuffle(held)
    yield from held


def batches(items: Iterable[tuple[T, int]], batch_size: int, buffer: int) -> Iterator[list[T]]:
    """Batches of items of one group each; every item is in exactly one.

    A group with `batch_size` items gives a batch. When `buffer` items wait, the largest group gives its smaller one;
    at the end all groups do, the largest first.

    Args:
        items: (item, number of its group).
        batch_size: items of a full batch.
        buffer: items that may wait, at most.
    """
    waiting: dict[int, deque[T]] = {}
    total = 0
    for item, group in items:
        queue = waiting.setdefault(group, deque())
        queue.append(item)
        total += 1
        full = group if len(queue) >= batch_size else _largest(waiting) if total >= buffer else None
        if full is not None:
            given = list(waiting.pop(full))
            total -= len(given)
            yield given
    while waiting:
        yield list(waiting.pop(_largest(waiting)))


def _largest(waiting: dict[int, deque[T]]) -> int:
    """The group with most items, the first of equals."""
    return max(waiting, key=lambda group: len(waiting[group]))


def group_of(size: tuple[int, int], targets: Sequence[tuple[int, int]]) -> int:
    """Number of the target (height, width) that cuts least of an image away; of equal shapes, that of nearest area."""
    table = np.log2(np.array([*targets, size], dtype=np.float64))
    shape = np.abs((table[:-1, 1] - table[:-1, 0]) - (table[-1, 1] - table[-1, 0]))
    area = np.abs(table[:-1].sum(axis=1) - table[-1].sum())
    return int(np.lexsort((area, shape.round(6)))[0])


@dataclass(frozen=True)
class Row:
    """One showing of an item of a stream."""

    item: StreamItem
    target: tuple[int, int]  # (height, width)
    number: int  # of the pass


class Plan:
    """The batches of a stream, pass after pass: batch n is a pure function of (seed, name, n).

    To get to a batch, all before it are planned, by headers alone. The first pass notes the size of every item, four
    bytes each; later passes are planned from these.

    Args:
        source: the stream.
        targets: the sizes of batches, (height, width).
        batch_size: items of a full batch.
        buffer: items that may wait for others of their size.
        shuffle: items of which the next one is drawn.
        seed: of the run.
        name: of the dataset.
    """

    def __init__(
        self,
        source: StreamSource,
        targets: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        buffer: int,
        shuffle: int,
        seed: int,
        name: str,
    ) -> None:
        self.source = source
        self.targets = list(targets)
        self.batch_size, self.buffer, self.shuffle = batch_size, buffer, shuffle
        self.seed, self.name = seed, name
        self.seen = 0  # items of the first pass, so far
        self._bad: list[BadFile] = []
        self._groups: np.ndarray | None = None  # (items,) number of the target of each; -1: unusable
        self._batches: Iterator[list[Row]] = iter(())
        self._last: tuple[int, list[Row]] = -1, []
        self._reached = 0  # batches that were planned at one time or another
        self._ends: list[int] = []  # number of the batch after each pass, as far as that

    def batch(self, number: int) -> list[Row]:
        """The rows of a batch, counted over all passes. Going on is cheap, going elsewhere reads headers again."""
        if number != self._last[0]:
            if number != self._last[0] + 1 or number == 0:
                self._batches = self._from(number)
            self._last = number, next(self._batches)
            self._reached = max(self._reached, number + 1)
        return self._last[1]

    def passes(self, batches: int) -> int:
        """How many passes end within the first batches."""
        if batches >= self._reached:
            self.batch(batches)  # to see whether a pass ends before it
        return bisect_right(self._ends, batches)

    def take_bad(self) -> list[BadFile]:
        """The unusable items that were met since the last call."""
        found, self._bad = self._bad, []
        return found

    def _from(self, start: int) -> Iterator[list[Row]]:
        number = 0
        for pass_number in count():
            if self._groups is None:
                rows = self._first_pass()
            else:
                rows = self._later_pass(pass_number, self._groups, start - number)
            for batch in rows:
                if batch is not None and number >= start:
                    yield batch
                number += 1
            if len(self._ends) == pass_number:
                self._ends.append(number)

    def _first_pass(self) -> Iterator[list[Row]]:
        groups = array("i")
        self.seen = 0

        def rows() -> Iterator[tuple[Row, int]]:
            for item in self.source.iterate(0):
                self.seen += 1
                if isinstance(item, BadFile):
                    self._bad.append(item)
                    groups.append(-1)
                else:
                    groups.append(group_of(item.size, self.targets))
                    yield Row(item, self.targets[groups[-1]], 0), groups[-1]

        yield from self._order(rows(), 0)
        if max(groups, default=-1) < 0:
            raise ValueError(f"data.{self.name}.source: none of its {self.seen} images can be used")
        self._groups = np.array(groups, dtype=np.int32)

    def _later_pass(self, number: int, groups: np.ndarray, skip: int) -> Iterator[list[Row] | None]:
        """The batches of a pass; None for the first `skip`, whose items are passed over if nothing else needs them."""
        good = np.flatnonzero(groups >= 0).tolist()
        order = self._order(((index, int(groups[index])) for index in good), number)
        done = groups < 0
        for batch in islice(order, max(0, skip)):
            done[batch] = True
            yield None
        if done.all():
            return
        at = int(done.argmin())
        items = self.source.iterate(at)
        held: dict[int, StreamItem] = {}
        for batch in order:
            while at <= max(batch):
                item = next(items, None)
                if item is None or (isinstance(item, BadFile) and not done[at]):
                    raise ValueError(
                        f"data.{self.name}.source: item {at} is no longer there; a stream must not change during a run"
                    )
                if not done[at] and not isinstance(item, BadFile):
                    held[at] = item
                at += 1
            yield [Row(held.pop(index), self.targets[groups[index]], number) for index in batch]

    def _order(self, items: Iterable[tuple[T, int]], number: int) -> Iterator[list[T]]:
        rng = python_random(self.seed, f"{self.name}/order", number)
        return batches(shuffled(items, self.shuffle, rng), self.batch_size, self.buffer)
