"""In which order an epoch shows the samples: batches of one size each, every sample once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Underfilled = Literal["keep", "pad", "repeat", "drop"]


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
            "drop": left out of this epoch, others in the next.
        rng: decides all shuffles.
    """
    rows: list[np.ndarray] = []
    counts: list[int] = []
    real: list[int] = []
    for group in groups:
        shuffled = rng.permutation(group)
        full, rest = divmod(len(shuffled), batch_size)
        sizes = [batch_size] * full
        filled = [batch_size] * full
        if rest and underfilled != "drop":
            filled.append(rest if underfilled in ("keep", "pad") else batch_size)
            sizes.append(rest if underfilled == "keep" else batch_size)
        rows.append(np.resize(shuffled, sum(sizes)))
        counts += sizes
        real += filled
    sizes_, real_ = np.array(counts, dtype=np.int64), np.array(real, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes_)])
    samples = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    order = rng.permutation(len(sizes_))
    pieces = [samples[starts[batch] : starts[batch + 1]] for batch in order]
    return Epoch(
        np.concatenate(pieces) if pieces else samples[:0],
        np.concatenate([[0], np.cumsum(sizes_[order])]),
        real_[order],
    )


def uneven(epoch: Epoch, samples: int, batch_size: int) -> str:
    """What an epoch does not show exactly once, or not in full batches, in words; "" if there is nothing to say."""
    shown = int(epoch.real.sum())
    if shown < samples:
        return f"underfilled: drop leaves out {samples - shown} of {samples} samples, others each epoch"
    if shown > samples:
        return f"underfilled: repeat shows {shown - samples} samples once more, others each epoch"
    smaller = int((epoch.real < batch_size).sum())
    padded = len(epoch.samples) - shown
    filled = f", filled with {padded} rows of zero loss" if padded else ""
    return f"{smaller} of {len(epoch)} batches have fewer than {batch_size} images{filled}" if smaller else ""
