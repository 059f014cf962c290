"""What must hold for every dataset: its sizes, counts, repeats and resolutions, and every number of processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcpdiff.data.numbering import Numbering
from hcpdiff.data.order import Epochs

EPOCHS = 7

thorough = settings(max_examples=80, deadline=None, database=None, derandomize=True)


@dataclass(frozen=True)
class Case:
    columns: list[list[int]]  # targets of each image at each resolution
    repeats: list[float]
    batch_size: int
    underfilled: str
    seed: int

    def epochs(self) -> Epochs:
        """As a fresh run would make them."""
        columns = np.array(self.columns, dtype=np.int32)
        numbering = Numbering(columns, np.array(self.repeats), int(columns.max()) + 1, self.seed)
        return Epochs(numbering, self.batch_size, self.underfilled, seed=self.seed, name="main")

    def units(self, epochs: Epochs, samples: list[int]) -> Counter[tuple[int, int]]:
        """How often each image is shown at each resolution."""
        numbering = epochs.samples
        return Counter((int(numbering.item_of[n]), numbering.column_of(n)) for n in samples)

    @property
    def wanted(self) -> dict[tuple[int, int], float]:
        """How often an epoch should show them, on average."""
        return {(i, k): self.repeats[i] for i, row in enumerate(self.columns) for k, t in enumerate(row) if t >= 0}


@st.composite
def cases(draw: st.DrawFn, policies: tuple[str, ...] = ("keep", "pad", "repeat", "drop", "merge")) -> Case:
    resolutions, targets = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    row = st.lists(st.integers(-1, targets - 1), min_size=resolutions, max_size=resolutions).filter(
        lambda r: max(r) >= 0
    )
    columns = draw(st.lists(row, min_size=1, max_size=25))
    known = st.sampled_from([0.25, 0.5, 1, 1, 1, 2, 3, 1.3, 0.1])
    one = st.lists(known, min_size=1, max_size=1).map(lambda r: r * len(columns))  # often all repeat alike
    repeats = draw(one | st.lists(known, min_size=len(columns), max_size=len(columns)))
    return Case(columns, repeats, draw(st.integers(1, 6)), draw(st.sampled_from(policies)), draw(st.integers(0, 99)))


def counted(epochs: Epochs, epoch: int, world_size: int = 1) -> list[int]:
    """The samples of an epoch whose loss counts, over all processes."""
    seen: list[int] = []
    for batch in range(len(epochs[epoch])):
        for rank in range(world_size):
            rows, weights = epochs[epoch].share(batch, rank, world_size)
            seen += [row for row, weight in zip(rows, weights or [1.0] * len(rows), strict=True) if weight]
    return seen


@thorough
@given(cases(policies=("keep", "pad", "merge")), st.sampled_from([1, 2, 3, 4]))
def test_every_image_is_seen_as_often_as_it_repeats(case: Case, world_size: int) -> None:
    epochs = case.epochs()
    total: Counter[tuple[int, int]] = Counter()
    for epoch in range(EPOCHS):
        seen = counted(epochs, epoch, world_size)
        assert len(set(seen)) == len(seen)
        units = case.units(epochs, seen)
        for unit, repeat in case.wanted.items():
            if float(repeat).is_integer():
                assert units[unit] == repeat  # exactly, in each epoch
        total += units
        for unit, repeat in case.wanted.items():  # the fixed point of 32 bits is finer than this 1e-6
            assert abs(total[unit] - (epoch + 1) * Fraction(repeat)) <= 1 + 1e-6
    assert total.keys() <= case.wanted.keys()


@thorough
@given(cases(policies=("drop",)))
def test_drop_leaves_out_less_than_a_batch_of_each_size(case: Case) -> None:
    epochs = case.epochs()
    for epoch in range(3):
        seen = set(counted(epochs, epoch))
        for group in epochs.samples.groups(epoch):
            assert len(set(group.tolist()) - seen) == len(group) % case.batch_size
        assert seen <= {number for group in epochs.samples.groups(epoch) for number in group.tolist()}


@thorough
@given(cases(policies=("repeat",)))
def test_repeat_shows_all_and_a_few_once_more(case: Case) -> None:
    epochs = case.epochs()
    for epoch in range(3):
        seen = Counter(counted(epochs, epoch))
        for group in epochs.samples.groups(epoch):
            assert all(seen[number] >= 1 for number in group.tolist())
            more = sum(seen[number] - 1 for number in group.tolist())
            assert more == -len(group) % case.batch_size


@thorough
@given(cases())
def test_every_batch_has_one_size(case: Case) -> None:
    epochs = case.epochs()
    for epoch in range(3):
        plan = epochs[epoch]
        assert len(plan) == epochs.batches(epoch)
        for batch in range(len(plan)):
            rows = plan[batch]
            assert len(set(epochs.samples.targets_of(rows).tolist())) == 1
            assert 0 < len(rows) <= case.batch_size
            assert len(rows) == case.batch_size or case.underfilled in ("keep", "merge")


@thorough
@given(cases())
def test_processes_together_see_what_one_sees_alone(case: Case) -> None:
    case = replace(case, batch_size=4 * case.batch_size)
    epochs = case.epochs()
    for batch in range(len(epochs[1])):
        alone = epochs[1].share(batch)[0]
        for world_size in (2, 4):
            shares = [epochs[1].share(batch, rank, world_size) for rank in range(world_size)]
            together = [row for rows in zip(*(rows for rows, _ in shares), strict=True) for row in rows]
            assert together[: len(alone)] == alone
            weights = [weight for rows, weights in shares for weight in weights or [1.0] * len(rows)]
            assert np.mean(weights) == pytest.approx(1)


@thorough
@given(cases(policies=("keep", "pad", "repeat", "merge")), st.integers(0, 40))
def test_a_run_that_starts_in_the_middle_goes_on_as_before(case: Case, number: int) -> None:
    old, new = case.epochs(), case.epochs()
    for before in range(number + 1):
        epoch, position = old.locate(before)
        expected = old[epoch].share(position)
    epoch, position = new.locate(number)
    assert new[epoch].share(position) == expected
    assert new.first_batch(epoch) + position == number


@thorough
@given(cases())
def test_group_sizes_are_those_of_the_groups(case: Case) -> None:
    numbering = case.epochs().samples
    for epoch in (0, 1, 5, 1000):
        assert numbering.group_sizes(epoch).tolist() == [len(group) for group in numbering.groups(epoch)]


@thorough
@given(cases())
def test_showings_count_up_without_gaps(case: Case) -> None:
    epochs = case.epochs()
    showings: dict[tuple[int, int], list[int]] = {}
    for epoch in range(EPOCHS):
        for number in np.sort(np.concatenate(epochs.samples.groups(epoch))).tolist():
            unit = (int(epochs.samples.item_of[number]), epochs.samples.column_of(number))
            showings.setdefault(unit, []).append(epochs.samples.showing(epoch, number))
    for seen in showings.values():
        assert seen == list(range(len(seen)))
