"""Several resolutions, images without a size, and sizes with too few images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcpdiff.data.buckets import Assignment, FixedBucket, RatioBucket, SizeBucket
from hcpdiff.data.buckets.base import settle
from hcpdiff.data.buckets.many import assign, combine, leave_out, merge_small
from hcpdiff.data.scan import Items


def test_images_that_no_size_suits_are_left_out_and_named() -> None:
    sizes = np.array([[512, 512], [300, 300], [100, 100]])
    assert FixedBucket(512, max_upscale=1.5).assign(sizes, 8).index.tolist() == [0, -1, -1]
    result = RatioBucket(512 * 512, max_upscale=1.5, min_side=256).assign(sizes, 8)
    assert result.targets == [(512, 512), (360, 360)]  # half the area: 362 of at most 450
    assert result.index.tolist() == [0, 1, -1]
    assert result.left_out.tolist() == [2]
    numbers = np.arange(3, dtype=np.int32)
    items = items_of(sizes)
    kept_items, kept_result, small = leave_out(items, result)
    assert (len(kept_items), kept_result.index.tolist(), kept_result.targets) == (2, [0, 1], result.targets)
    assert np.array_equal(kept_items.local, numbers[:2])
    assert [(file.key, file.reason) for file in small] == [
        ("2", "100 x 100 is too small; lower the bucket's min_side, or raise or leave out its max_upscale")
    ]
    assert leave_out(kept_items, kept_result) == (kept_items, kept_result, [])


class Keys:
    """As much of a source as names its images."""

    def key(self, index: int) -> str:
        return str(index)


def items_of(sizes: np.ndarray) -> Items:
    numbers = np.arange(len(sizes), dtype=np.int32)
    return Items([Keys()], np.zeros_like(numbers), numbers, sizes, np.ones(len(sizes)))


def test_several_resolutions_give_each_image_a_size_of_each() -> None:
    sizes = np.array([[100, 100], [50, 100]])
    both = assign([FixedBucket(64), RatioBucket(32 * 32)], sizes, 8, "bucket")
    assert both.targets == [(64, 64), (32, 32), (24, 48)]
    assert both.index.tolist() == [[0, 1], [0, 2]]
    assert assign([FixedBucket(64)], sizes, 8, "bucket").index.tolist() == [0, 0]


def test_an_image_has_each_size_once() -> None:
    result = assign([FixedBucket(64), RatioBucket(64 * 64)], np.array([[100, 100], [50, 100]]), 8, "bucket")
    assert result.targets == [(64, 64), (48, 88)]
    assert result.index.tolist() == [[0, -1], [0, 1]]


def test_a_small_image_lacks_large_resolutions() -> None:
    sizes = np.array([[128, 128], [70, 70], [30, 30], [3, 3]])
    many = [RatioBucket(area**2, max_upscale=1, min_side=16) for area in (128, 64, 32)]
    result = assign(many, sizes, 8, "bucket")
    shown = [[result.targets[n] for n in row if n >= 0] for row in result.index]
    assert shown == [[(128, 128), (64, 64), (32, 32)], [(64, 64), (32, 32)], [(24, 24)], []]
    assert result.left_out.tolist() == [3]


def test_combining_keeps_the_largest_of_the_sizes_made_for_a_small_image() -> None:
    shrunk = np.array([True])
    one, other = (Assignment([(side, side)], np.array([0], dtype=np.int32), shrunk=shrunk) for side in (24, 32))
    result = combine([one, other])
    assert (result.targets, result.index.tolist()) == ([(32, 32)], [[-1, 0]])


def test_rare_sizes_merge_into_the_nearest() -> None:
    targets = [(64, 64), (72, 56), (128, 128), (40, 104)]
    index = np.array([0] * 9 + [1] * 2 + [2] * 8 + [3], dtype=np.int32)
    result = merge_small(Assignment(targets, index), np.ones(20), 4)
    assert result.targets == [(64, 64), (128, 128)]
    assert result.index.tolist() == [0] * 11 + [1] * 8 + [0]
    often = merge_small(Assignment(targets, index), np.full(20, 4.0), 4)  # repeats fill batches too
    assert often.targets == targets
    alone = merge_small(Assignment(targets, index), np.ones(20), 100)
    assert len(alone.targets) == 1
    several = merge_small(Assignment([(8, 8), (16, 16), (9, 8)], np.array([[0, 1], [2, -1]])), np.full(2, 1.0), 2)
    assert (several.targets, several.index.tolist()) == ([(9, 8)], [[0, 0], [0, -1]])


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=60), st.integers(1, 12))
def test_after_merging_every_size_fills_a_batch(index: list[int], batch_size: int) -> None:
    targets = [(64 + 8 * n, 64 + 8 * (n % 3)) for n in range(8)]
    before = settle(targets, np.array(index, dtype=np.int32))
    after = merge_small(before, np.ones(len(index)), batch_size)
    counts = np.bincount(after.index, minlength=len(after.targets))
    assert counts.sum() == len(index)
    assert len(after.targets) == 1 or counts.min() >= batch_size
    big = np.flatnonzero(np.bincount(before.index) >= batch_size)
    for number in big:  # sizes with enough images are as they were
        images = np.flatnonzero(before.index == number)
        assert {after.targets[n] for n in after.index[images]} == {before.targets[number]}


def test_buckets_that_scale_and_that_do_not_are_not_mixed() -> None:
    with pytest.raises(
        ValueError, match=r"^bucket: some of the buckets scale images and some do not; use one kind only$"
    ):
        assign([SizeBucket(), FixedBucket(64)], np.array([[64, 64]]), 8, "bucket")
