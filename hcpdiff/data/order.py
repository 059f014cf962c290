"""In which order an epoch shows the samples: batches of one size each, every sample once."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from hcpdiff.randomness import derive

Underfilled = Literal["keep", "pad", "repeat", "drop", "merge"]

_IN_MEMORY = 2  # epochs
_EMPTY = 10_000  # epochs in a row without a batch, before we give up


@dataclass(frozen=True)
class Epoch:
    """The batches of one epoch, in running order."""

    samples: np.ndarray  # (M,) sample numbers, batch after batch
    starts: np.ndarray  # (batches + 1,) where each batch begins in `samples`
    real: np.ndarray  # (batches,) how many rows of each batch count; the rest, at its end, only pad it

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, batch: int) -> np.ndarray:
        """Sample numbers of one batch."""
        return self.samples[self.starts[batch] : self.starts[batch + 1]]

    def share(self, batch: int, rank: int = 0, world_size: int = 1) -> tuple[list[int], list[float] | None]:
        """One process's rows of a batch, and their weights in the loss.

        All processes get equally many; where the rows do not divide, some are shown twice, with no loss. Weights are
        None if all rows count alike. Otherwise they make the mean over all rows that of the rows that count.
        """
        rows, real = self[batch], int(self.real[batch])
        total = -(-len(rows) // world_size) * world_size
        rows = np.resize(rows, total)[rank::world_size].tolist()
        if total == real:
            return rows, None
        return rows, [total / real if row < real else 0.0 for row in range(rank, total, world_size)]


def plan(groups: Sequence[np.ndarray], batch_size: int, underfilled: Underfilled, rng: np.random.Generator) -> Epoch:
    """Shuffle within each group (samples of one size), cut into batches, shuffle the batches.

    Args:
        groups: sample numbers of each size.
        batch_size: rows of a full batch.
        underfilled: what becomes of the last, smaller batch of a group. "keep": it stays smaller. "pad": it is filled
            with rows whose loss is zero. "repeat": filled with other samples of the group, which are seen once more.
            "drop": left out of this epoch, others in the next. "merge": stays smaller; groups that are too small for
            one batch were merged before, see `buckets.merge_small`.
        rng: decides all shuffles.
    """
    rows: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    real: list[np.ndarray] = []
    for group in groups:
        batches = _batches(np.array(len(group)), batch_size, underfilled).item()
        shown, counted = np.full(batches, batch_size), np.full(batches, batch_size)
        rest = len(group) % batch_size
        if rest and batches and underfilled in ("keep", "pad", "merge"):
            counted[-1] = rest
            shown[-1] = batch_size if underfilled == "pad" else rest
        rows.append(np.resize(rng.permutation(group), shown.sum()))
        sizes.append(shown)
        real.append(counted)
    return _shuffled(_joined(rows, np.int32), _joined(sizes), _joined(real), rng)


def _shuffled(samples: np.ndarray, sizes: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> Epoch:
    """These batches, which lie one after the other, in a random order."""
    order = rng.permutation(len(sizes))
    old, new = np.cumsum(sizes) - sizes, np.concatenate([[0], np.cumsum(sizes[order])])
    where = np.arange(len(samples)) + np.repeat(old[order] - new[:-1], sizes[order])
    return Epoch(samples[where], new, real[order])


def _joined(parts: Sequence[np.ndarray], dtype: Any = np.int64) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


def _batches(samples: np.ndarray, batch_size: int, underfilled: Underfilled) -> np.ndarray:
    """How many batches groups of so many samples have."""
    return samples // batch_size if underfilled == "drop" else -(-samples // batch_size)


class Showings(Protocol):
    """What `Epochs` needs to know of the samples; `Samples` is one."""

    @property
    def steady(self) -> bool:
        """Whether every epoch shows the same samples."""
        ...

    def groups(self, epoch: int) -> list[np.ndarray]:
        """The sample numbers of each size in an epoch."""
        ...

    def group_sizes(self, epoch: int) -> np.ndarray:
        """How many those are, (targets,)."""
        ...


class Epochs:
    """All epochs of a run: `epochs[number]` plans one when it is asked for; epochs may differ in length.

    Threads may use it at once: one makes batches ready while another counts them.

    Args:
        samples: which of them an epoch shows.
        batch_size: rows of a full batch.
        underfilled: see `plan`.
        seed: of the run.
        name: of the dataset; others draw other orders.
    """

    def __init__(self, samples: Showings, batch_size: int, underfilled: Underfilled, *, seed: int, name: str) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.underfilled: Underfilled = underfilled
        self.seed = seed
        self.name = name
        self._planned: dict[int, Epoch] = {}
        self._firsts = [0]  # the number of the first batch of each epoch, as far as was asked
        self._lock = threading.RLock()

    def __getitem__(self, number: int) -> Epoch:
        """The batches of an epoch; the last two that were asked for stay in memory."""
        with self._lock:
            epoch = self._planned.pop(number, None)
            if epoch is None:
                rng = np.random.default_rng(derive(self.seed, f"{self.name}/order", number))
                epoch = plan(self.samples.groups(number), self.batch_size, self.underfilled, rng)
                while len(self._planned) >= _IN_MEMORY:
                    del self._planned[next(iter(self._planned))]
            self._planned[number] = epoch
            return epoch

    def batches(self, number: int) -> int:
        """How many batches an epoch has; without planning it."""
        return self.first_batch(number + 1) - self.first_batch(number)

    def first_batch(self, epoch: int) -> int:
        """The number of the first batch of an epoch, counted over the run."""
        if self.samples.steady:
            return epoch * self._of_each
        with self._lock:
            while len(self._firsts) <= epoch:
                self._firsts.append(self._firsts[-1] + self._count(len(self._firsts) - 1))
            return self._firsts[epoch]

    def locate(self, batch: int) -> tuple[int, int]:
        """The epoch of a batch that is counted over the run, and its position within that epoch.

        Raises:
            ValueError: there is no such batch, as no epoch has one, or very many in a row have none.
        """
        if not self.samples.steady:
            return self._search(batch)
        if not self._of_each:
            raise ValueError(self._no_batch())
        return divmod(batch, self._of_each)

    def passed(self, batches: int) -> float:
        """How many epochs the first `batches` batches of the run are."""
        epoch, position = self.locate(batches)
        return epoch + position / self.batches(epoch)

    def _search(self, batch: int) -> tuple[int, int]:
        empty = 0
        with self._lock:
            while self.first_batch(len(self._firsts)) <= batch:
                empty = empty + 1 if self._firsts[-1] == self._firsts[-2] else 0
                if empty > _EMPTY:
                    raise ValueError(self._no_batch())
            epoch = bisect_right(self._firsts, batch) - 1
            return epoch, batch - self._firsts[epoch]

    @cached_property
    def _of_each(self) -> int:
        """Batches of every epoch, where they are alike."""
        return self._count(0)

    def _count(self, epoch: int) -> int:
        return int(_batches(self.samples.group_sizes(epoch), self.batch_size, self.underfilled).sum())

    def _no_batch(self) -> str:
        if self.underfilled == "drop":
            return f"underfilled: 'drop' leaves nothing, as no size has {self.batch_size} images; use 'keep'"
        return "source.repeat: no image is ever shown; use numbers above 0"

    def __getstate__(self) -> dict[str, Any]:
        """Without plans and lock: worker processes make their own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_planned": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())


def uneven(
    epoch: Epoch, groups: Sequence[np.ndarray], batch_size: int, key: Callable[[int], str] = str, show: int = 5
) -> str:
    """What an epoch does not show exactly once, or not in full batches, in words; "" if there is nothing to say.

    Args:
        groups: sample numbers of each size, of the same epoch.
        key: names a sample.
        show: name at most so many samples.
    """
    samples = sum(map(len, groups))
    shown = int(epoch.real.sum())
    if shown < samples:
        return _dropped(epoch, groups, batch_size, key, show)
    if shown > samples:
        return f"underfilled: repeat shows {shown - samples} samples once more, others each epoch"
    smaller = int((epoch.real < batch_size).sum())
    padded = len(epoch.samples) - shown
    filled = f", filled with {padded} rows of zero loss" if padded else ""
    return f"{smaller} of {len(epoch)} batches have fewer than {batch_size} images{filled}" if smaller else ""


def _dropped(epoch: Epoch, groups: Sequence[np.ndarray], batch_size: int, key: Callable[[int], str], show: int) -> str:
    """What "drop" leaves out, those first whose size has no batch at all."""
    numbers = np.setdiff1d(np.concatenate(groups), epoch.samples)
    named = ", ".join(key(number) for number in numbers[:show].tolist())
    more = f" and {len(numbers) - show} more" if len(numbers) > show else ""
    alone = sum(len(group) for group in groups if len(group) < batch_size)
    never = f"; of sizes with fewer than {batch_size} samples, {alone} are left out altogether" if alone else ""
    return (
        f"underfilled: drop leaves out {len(numbers)} of {sum(map(len, groups))} samples, others each epoch{never}; "
        f"in this one: {named}{more}"
    )
