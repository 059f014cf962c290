from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcpdiff.data.order import plan, uneven

counts = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def groups_of(counts: list[int]) -> list[np.ndarray]:
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [np.arange(start, stop) for start, stop in pairwise(starts)]


def epoch_of(counts: list[int], batch_size: int, underfilled: str, seed: int = 0):
    return plan(groups_of(counts), batch_size, underfilled, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(counts, st.integers(1, 9), st.sampled_from(["keep", "pad", "repeat", "drop"]))
def test_a_batch_has_one_size_and_is_never_too_large(counts: list[int], batch_size: int, underfilled: str) -> None:
    groups = groups_of(counts)
    owner = {int(sample): number for number, group in enumerate(groups) for sample in group}
    epoch = epoch_of(counts, batch_size, underfilled)
    for number in range(len(epoch)):
        rows = epoch[number].tolist()
        assert len({owner[row] for row in rows}) == 1
        assert 0 < len(rows) <= batch_size
        assert len(rows) == batch_size or underfilled == "keep"


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(counts, st.integers(1, 4), st.sampled_from([1, 2, 3, 4]), st.sampled_from(["keep", "pad"]))
def test_every_sample_counts_once_over_all_processes(
    counts: list[int], share: int, world_size: int, underfilled: str
) -> None:
    epoch = epoch_of(counts, share * world_size, underfilled)
    seen: Counter[int] = Counter()
    for number in range(len(epoch)):
        shares = [epoch.share(number, rank, world_size) for rank in range(world_size)]
        assert len({len(rows) for rows, _ in shares}) == 1  # all processes have equally much to do
        weights = [weight for rows, weights in shares for weight in weights or [1.0] * len(rows)]
        assert np.mean(weights) == pytest.approx(1)  # so the mean loss is that of the rows that count
        for rows, row_weights in shares:
            seen.update(row for row, weight in zip(rows, row_weights or [1.0] * len(rows), strict=True) if weight)
    assert seen == Counter(range(sum(counts)))


def test_processes_together_see_what_one_sees_alone() -> None:
    epoch = epoch_of([13, 7], 4, "keep")
    for number in range(len(epoch)):
        alone = epoch.share(number)[0]
        shares = [epoch.share(number, rank, 2)[0] for rank in range(2)]
        together = [row for pair in zip(*shares, strict=True) for row in pair]
        assert together[: len(alone)] == alone


def test_repeat_fills_batches_and_drop_leaves_out() -> None:
    repeat, drop = epoch_of([5, 2], 4, "repeat"), epoch_of([5, 2], 4, "drop")
    assert sorted(Counter(repeat.samples.tolist()).values()) == [1, 1, 2, 2, 2, 2, 2]
    assert (len(repeat), len(drop), len(drop.samples)) == (3, 1, 4)
    assert uneven(repeat, 7, 4) == "underfilled: repeat shows 5 samples once more, others each epoch"
    assert uneven(drop, 7, 4) == "underfilled: drop leaves out 3 of 7 samples, others each epoch"


def test_smaller_batches_are_told() -> None:
    assert uneven(epoch_of([5, 2], 4, "keep"), 7, 4) == "2 of 3 batches have fewer than 4 images"
    padded = uneven(epoch_of([5, 2], 4, "pad"), 7, 4)
    assert padded == "2 of 3 batches have fewer than 4 images, filled with 5 rows of zero loss"
    assert uneven(epoch_of([4, 8], 4, "keep"), 12, 4) == ""


def test_the_generator_decides_the_order() -> None:
    assert np.array_equal(epoch_of([20, 9], 4, "keep", 1).samples, epoch_of([20, 9], 4, "keep", 1).samples)
    assert not np.array_equal(epoch_of([20, 9], 4, "keep", 1).samples, epoch_of([20, 9], 4, "keep", 2).samples)
