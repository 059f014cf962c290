from __future__ import annotations

import itertools

import numpy as np
import pytest

from hcpdiff.data import Bucket, FixedBucket, RatioBucket, RatioGridBucket
from hcpdiff.data.buckets import kmeans, nearest

RNG = np.random.default_rng(0)
SIZES = RNG.integers(100, 2000, (300, 2))


def kept(size: np.ndarray, target: tuple[int, int]) -> float:
    """Share of an image's area that a target keeps, by the definition: scale to cover, then crop."""
    scale = max(target[0] / size[0], target[1] / size[1])
    return target[0] * target[1] / (size[0] * size[1] * scale**2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_kmeans_finds_the_optimum(count: int) -> None:
    values = np.random.default_rng(count).normal(size=7)
    labels = kmeans(values, count)[1]

    def spread(labels: np.ndarray) -> float:
        return sum(((values[labels == k] - values[labels == k].mean()) ** 2).sum() for k in np.unique(labels))

    best = min(spread(np.array(other)) for other in itertools.product(range(count), repeat=len(values)))
    assert spread(labels) == pytest.approx(best)


def test_kmeans_of_few_or_many_values() -> None:
    assert kmeans(np.array([1.0, 1.0, 2.0]), 5)[0].tolist() == [1, 2]  # no more groups than different values
    many = np.concatenate([RNG.normal(center, 0.1, 20000) for center in (-1, 0, 2)])
    assert kmeans(many, 3)[0] == pytest.approx([-1, 0, 2], abs=0.02)  # 512 bins over a range of 4


@pytest.mark.parametrize(
    "bucket",
    [
        RatioBucket(512 * 512, num_buckets=7),
        RatioBucket(512 * 512, ratios=["1:1", "3:4", 1.5, "2:1"], step=64),
        RatioGridBucket(512 * 512, num_buckets=7),
        FixedBucket([512, 256]),
    ],
)
def test_every_image_gets_a_size_that_suits_the_model(bucket: Bucket) -> None:
    assert isinstance(bucket, Bucket)
    result = bucket.assign(SIZES, 16)
    assert len(result.index) == len(SIZES)
    assert len(set(result.targets)) == len(result.targets)
    assert set(result.index.tolist()) == set(range(len(result.targets)))  # no size without images
    assert all(side % 16 == 0 and side > 0 for target in result.targets for side in target)
    again = bucket.assign(SIZES, 16)
    assert again.targets == result.targets
    assert np.array_equal(again.index, result.index)


@pytest.mark.parametrize("bucket", [RatioBucket(512 * 512, num_buckets=7), RatioGridBucket(512 * 512, num_buckets=7)])
def test_each_image_gets_the_size_that_cuts_least_away(bucket: Bucket) -> None:
    result = bucket.assign(SIZES, 8)
    for size, index in zip(SIZES, result.index, strict=True):
        assert kept(size, result.targets[index]) == pytest.approx(max(kept(size, t) for t in result.targets))


def test_sizes_have_about_the_area_and_the_ratios_asked_for() -> None:
    targets = RatioBucket(512 * 512, ratios=["1:2", "1:1", "2:1"]).assign(SIZES, 8).targets
    assert targets == [(728, 360), (512, 512), (360, 728)]  # sqrt(512^2 * 2) = 724.1, to a multiple of 8
    assert RatioBucket(512 * 512, ratios=["2:1"]).assign(SIZES, 8).targets == [(360, 728)]  # width to height


def test_equal_sizes_merge_and_buckets_are_no_more_than_ratios() -> None:
    close = np.array([[100, 100], [100, 101], [101, 100]])
    assert RatioBucket(64 * 64, num_buckets=10).assign(close, 16).targets == [(64, 64)]
    assert RatioBucket(64 * 64, num_buckets=10).assign(close[:1], 16).targets == [(64, 64)]


def test_fewer_images_than_buckets_is_fine() -> None:
    result = RatioBucket(64 * 64, num_buckets=10).assign(np.array([[100, 50], [50, 100]]), 8)
    assert result.targets == [(88, 48), (48, 88)]


def test_the_grid_does_not_depend_on_the_images() -> None:
    targets = RatioGridBucket(640 * 640, num_buckets=10).targets(8)
    assert 5 <= len(targets) <= 10
    ratios = [width / height for height, width in targets]
    assert ratios == sorted(ratios)
    assert all(1 / 4.2 < ratio < 4.2 for ratio in ratios)
    assert all(abs(height * width / 640**2 - 1) < 0.02 for height, width in targets)


def test_lost_area_decides_ties_by_the_first() -> None:
    assert nearest(np.array([[100, 100]]), [(10, 20), (20, 10)]).targets == [(10, 20)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedBucket(0), "size: 0 is no size"),
        (lambda: FixedBucket([64, 64, 64]), "size: .* is no size"),
        (lambda: FixedBucket(100).assign(SIZES, 16), "divide by 16, 100 does not; use 96"),
        (lambda: RatioBucket(0), "area: 0 is no number of pixels"),
        (lambda: RatioBucket(64, num_buckets=0), "num_buckets: 0 is too few"),
        (lambda: RatioBucket(64, ratios=[]), "ratios: the list is empty"),
        (lambda: RatioBucket(64, ratios=[61, "x"]), r'ratios\[0\]: 61 is no aspect ratio; write "1:1" with quotes'),
        (lambda: RatioBucket(64, ratios=["3:0"]), r"ratios\[0\]: '3:0' is no aspect ratio"),
        (lambda: RatioBucket(64, step=8).assign(SIZES, 16), "step: 8 is no multiple of 16"),
        (lambda: RatioGridBucket(64, ratio_max=0.5), "ratio_max: 0.5 is below 1"),
    ],
)
def test_wrong_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
