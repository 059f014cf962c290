from __future__ import annotations

import itertools
import pickle
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcpdiff.data.numbering import Numbering
from hcpdiff.data.order import Epochs, plan, uneven

counts = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def groups_of(counts: list[int]) -> list[np.ndarray]:
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [np.arange(start, stop) for start, stop in pairwise(starts)]


def epoch_of(counts: list[int], batch_size: int, underfilled: str, seed: int = 0):
    return plan(groups_of(counts), batch_size, underfilled, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(counts, st.integers(1, 9), st.sampled_from(["keep", "pad", "repeat", "drop", "merge"]))
def test_a_batch_has_one_size_and_is_never_too_large(counts: list[int], batch_size: int, underfilled: str) -> None:
    groups = groups_of(counts)
    owner = {int(sample): number for number, group in enumerate(groups) for sample in group}
    epoch = epoch_of(counts, batch_size, underfilled)
    for number in range(len(epoch)):
        rows = epoch[number].tolist()
        assert len({owner[row] for row in rows}) == 1
        assert 0 < len(rows) <= batch_size
        assert len(rows) == batch_size or underfilled in ("keep", "merge")


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(counts, st.integers(1, 4), st.sampled_from([1, 2, 3, 4]), st.sampled_from(["keep", "pad", "merge"]))
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
    assert uneven(repeat, groups_of([5, 2]), 4) == "underfilled: repeat shows 5 samples once more, others each epoch"


def test_what_drop_leaves_out_is_counted_and_named() -> None:
    drop = epoch_of([5, 2], 4, "drop")
    first = next(iter({0, 1, 2, 3, 4} - set(drop.samples.tolist())))
    assert uneven(drop, groups_of([5, 2]), 4, "abcdefg".__getitem__) == (
        "underfilled: drop leaves out 3 of 7 samples, others each epoch; of sizes with fewer than 4 samples, 2 are "
        f"left out altogether; in this one: {'abcde'[first]}, f, g"
    )
    assert uneven(epoch_of([7], 8, "drop"), groups_of([7]), 8, show=2).endswith("in this one: 0, 1 and 5 more")
    assert "altogether" not in uneven(epoch_of([7], 4, "drop"), groups_of([7]), 4)


def test_smaller_batches_are_told() -> None:
    assert uneven(epoch_of([5, 2], 4, "keep"), groups_of([5, 2]), 4) == "2 of 3 batches have fewer than 4 images"
    padded = uneven(epoch_of([5, 2], 4, "pad"), groups_of([5, 2]), 4)
    assert padded == "2 of 3 batches have fewer than 4 images, filled with 5 rows of zero loss"
    assert uneven(epoch_of([4, 8], 4, "keep"), groups_of([4, 8]), 4) == ""


def test_the_generator_decides_the_order() -> None:
    assert np.array_equal(epoch_of([20, 9], 4, "keep", 1).samples, epoch_of([20, 9], 4, "keep", 1).samples)
    assert not np.array_equal(epoch_of([20, 9], 4, "keep", 1).samples, epoch_of([20, 9], 4, "keep", 2).samples)


def test_batches_of_different_sizes_are_mixed() -> None:
    epoch = epoch_of([400, 400], 4, "keep")
    first = [epoch[number][0] < 400 for number in range(len(epoch))]
    changes = sum(one != other for one, other in pairwise(first))
    assert 70 < changes < 130  # 199 neighbours, of which half differ: 100, and 30 are four standard deviations


class Shown:
    """Samples of which epoch e shows the first counts[e % n] of each group."""

    def __init__(self, *counts: list[int]) -> None:
        self.counts = counts
        self.steady = len(counts) == 1

    def groups(self, epoch: int) -> list[np.ndarray]:
        return [np.arange(count) + 100 * group for group, count in enumerate(self.group_sizes(epoch))]

    def group_sizes(self, epoch: int) -> np.ndarray:
        return np.array(self.counts[epoch % len(self.counts)])


@pytest.mark.parametrize("samples", [Shown([5, 2]), Shown([5, 2], [0, 0], [1, 9], [3, 0])])
@pytest.mark.parametrize("underfilled", ["keep", "drop"])
def test_batches_are_numbered_over_epochs_of_any_length(samples: Shown, underfilled: str) -> None:
    epochs = Epochs(samples, 2, underfilled, seed=0, name="main")
    counted = [(epoch, position) for epoch in range(12) for position in range(len(epochs[epoch]))]
    fresh = Epochs(samples, 2, underfilled, seed=0, name="main")
    assert fresh.locate(len(counted) - 1) == counted[-1]  # without those before
    assert [fresh.locate(number) for number in range(len(counted))] == counted
    assert [fresh.first_batch(epoch) for epoch in range(12)] == [
        sum(one < epoch for one, _ in counted) for epoch in range(12)
    ]
    assert [fresh.batches(epoch) for epoch in range(12)] == [len(epochs[epoch]) for epoch in range(12)]
    assert fresh.passed(1) == 1 / len(epochs[0])
    assert fresh.passed(len(epochs[0])) == pytest.approx(1 if len(samples.counts) == 1 else 2)  # the empty one is over


@pytest.mark.parametrize("samples", [Shown([1, 1]), Shown([1, 1], [1, 0])])
def test_a_run_without_a_batch_is_an_error(samples: Shown) -> None:
    with pytest.raises(ValueError, match="underfilled: 'drop' leaves nothing, as no size has 2 images; use 'keep'"):
        Epochs(samples, 2, "drop", seed=0, name="main").locate(0)
    with pytest.raises(ValueError, match=r"source.repeat: no image is ever shown"):
        Epochs(Shown([0]), 2, "keep", seed=0, name="main").locate(0)


def test_few_epochs_stay_in_memory_and_workers_get_none() -> None:
    epochs = Epochs(Shown([5]), 2, "keep", seed=0, name="main")
    assert epochs[1] is epochs[1]
    for number in range(5):
        epochs[number]
    assert len(epochs._planned) == 2
    there = pickle.loads(pickle.dumps(epochs))
    assert not there._planned
    assert np.array_equal(there[4].samples, epochs[4].samples)


def test_datasets_of_other_names_or_seeds_have_other_orders() -> None:
    orders = [
        Epochs(Shown([50]), 2, "keep", seed=s, name=n)[e].samples
        for s, n, e in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert all(not np.array_equal(one, other) for one, other in itertools.combinations(orders, 2))


class Fractional:
    """Samples of which every epoch shows others."""

    steady = False
    numbering = Numbering(np.zeros((500, 1), dtype=np.int64), np.full(500, 0.02), 1, 5)

    def groups(self, epoch: int) -> list[np.ndarray]:
        return self.numbering.groups(epoch)

    def group_sizes(self, epoch: int) -> np.ndarray:
        return self.numbering.group_sizes(epoch)


def test_threads_that_look_at_epochs_at_once_see_the_same(switching_often: None) -> None:
    def look(epochs: Epochs) -> list[object]:
        return [(epochs.locate(batch), epochs[batch // 4].samples.tolist()) for batch in range(800)]

    expected, shared = (Epochs(Fractional(), 4, "keep", seed=0, name="main") for _ in range(2))
    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(look, [shared] * 3))
    assert seen == [look(expected)] * 3


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads take turns so often that they meet in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
