from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hcpdiff.data.buckets import (
    Bucket,
    FixedBucket,
    LongEdgeBucket,
    RatioBucket,
    RatioGridBucket,
    RatioSizeBucket,
    SizeBucket,
    kmeans,
    load_sizes,
    nearest,
    save_sizes,
)
from hcpdiff.data.buckets.kmeans import kmeans_plane
from hcpdiff.data.buckets.many import assign

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


def spread(points: np.ndarray, weight: np.ndarray, centers: np.ndarray) -> float:
    """Weighted sum of squared distances to the nearest center."""
    return float((((points[:, None] - centers[None]) ** 2).sum(axis=2).min(axis=1) * weight).sum())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_kmeans_in_the_plane_finds_the_optimum_of_few_points(count: int) -> None:
    rng = np.random.default_rng(count)
    points, weight = rng.normal(size=(6, 2)), rng.integers(1, 5, 6)

    def centers(labels: tuple[int, ...]) -> np.ndarray:
        groups = [np.array(labels) == k for k in set(labels)]
        return np.stack([np.average(points[group], axis=0, weights=weight[group]) for group in groups])

    best = min(spread(points, weight, centers(other)) for other in itertools.product(range(count), repeat=6))
    found = kmeans_plane(points, weight, count)
    assert len(found) == count
    assert spread(points, weight, found) == pytest.approx(best)


def test_kmeans_in_the_plane_of_few_or_many_points() -> None:
    two = np.array([[3.0, 1.0], [1.0, 2.0]])
    assert kmeans_plane(two, np.ones(2), 5).tolist() == [[3, 1], [1, 2]]
    middles = np.array([[-1, 0], [2, 3], [0, 2.0]])
    many = np.concatenate([RNG.normal(middle, 0.1, (20000, 2)) for middle in middles])
    found = kmeans_plane(many, np.ones(len(many)), 3)
    assert found == pytest.approx(middles[[0, 2, 1]], abs=0.02)  # 64 cells over a range of 4
    assert np.array_equal(found, kmeans_plane(many, np.ones(len(many)), 3))


@pytest.mark.parametrize(
    "bucket",
    [
        RatioBucket(512 * 512, num_buckets=7),
        RatioBucket(512 * 512, num_buckets=7, min_side=400, max_upscale=1.2),
        RatioBucket(512 * 512, ratios=["1:1", "3:4", 1.5, "2:1"], step=64),
        RatioGridBucket(512 * 512, num_buckets=7),
        RatioSizeBucket(512 * 512, num_buckets=7),
        LongEdgeBucket(640, num_buckets=7),
        SizeBucket(num_buckets=7),
        FixedBucket([512, 256]),
    ],
    ids=lambda bucket: type(bucket).__name__,
)
def test_every_image_gets_a_size_that_suits_the_model(bucket: Bucket) -> None:
    assert isinstance(bucket, Bucket)
    result = bucket.assign(SIZES, 16)
    assert result.index.shape == (len(SIZES),)
    assert len(set(result.targets)) == len(result.targets)
    assert set(result.index.tolist()) - {-1} == set(range(len(result.targets)))  # no size without images
    assert all(side % 16 == 0 and side > 0 for target in result.targets for side in target)
    again = bucket.assign(SIZES, 16)
    assert again.targets == result.targets
    assert np.array_equal(again.index, result.index)


@pytest.mark.parametrize("bucket", [RatioBucket(512 * 512), RatioGridBucket(512 * 512), LongEdgeBucket(640)])
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


def test_the_sizes_are_those_of_the_centers() -> None:
    sizes = np.array([[104, 208]] * 3 + [[416, 208]] * 2)
    assert RatioBucket(640 * 640, num_buckets=2).assign(sizes, 8).targets == [(904, 456), (456, 904)]  # 905.1, 452.5
    assert LongEdgeBucket(640, num_buckets=2).assign(sizes, 8).targets == [(640, 320), (320, 640)]
    small = RatioSizeBucket(208 * 208, num_buckets=2).assign(sizes, 8)
    assert small.targets == [(104, 208), (296, 144)]  # the second was 294.2 x 147.1, of area 208^2
    assert small.index.tolist() == [0, 0, 0, 1, 1]
    assert SizeBucket(num_buckets=2).assign(sizes, 8).targets == [(104, 208), (416, 208)]
    one = SizeBucket(num_buckets=1).assign(sizes, 8)
    assert one.targets == [(232, 208)]  # the mean height is 228.8
    assert not one.resize


def test_small_images_stay_small_with_ratio_and_size() -> None:
    sizes = np.array([[1000, 1000]] * 5 + [[200, 200]] * 5 + [[3000, 3000]] * 5)
    result = RatioSizeBucket(512 * 512, num_buckets=4).assign(sizes, 8)
    assert result.targets == [(200, 200), (512, 512)]
    assert result.index.tolist() == [1] * 5 + [0] * 5 + [1] * 5


def test_without_scaling_an_image_gets_the_size_that_wastes_least() -> None:
    result = SizeBucket(num_buckets=6).assign(SIZES, 16)

    def wasted(size: np.ndarray, target: tuple[int, int]) -> int:
        shared = min(size[0], target[0]) * min(size[1], target[1])
        return size[0] * size[1] - shared + target[0] * target[1] - shared

    for size, index in zip(SIZES, result.index, strict=True):
        assert wasted(size, result.targets[index]) == min(wasted(size, target) for target in result.targets)


def test_no_side_is_shorter_than_min_side() -> None:
    sizes = np.array([[100, 1000], [1000, 100], [300, 300]])
    for bucket in (
        RatioBucket(512 * 512, min_side=300),
        RatioSizeBucket(512 * 512, min_side=300),
        LongEdgeBucket(512, min_side=300),
        SizeBucket(min_side=300),
    ):
        assert min(min(target) for target in bucket.assign(sizes, 8).targets) == 304  # the next multiple of 8
    grid = RatioGridBucket(512 * 512, ratio_max=8, min_side=300).targets(8)
    assert 304 <= min(map(min, grid)) < 320  # near the least, as its sizes are medians of clusters
    assert RatioBucket(512 * 512, min_side=300).assign(sizes[:1], 8).targets == [(304, 872)]  # 512^2 / 300 = 873.8


@pytest.mark.parametrize("limit", [0.7, 1.0, 1.5])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: RatioBucket(512 * 512, **options),
        lambda **options: RatioGridBucket(512 * 512, **options),
        lambda **options: RatioSizeBucket(512 * 512, **options),
        lambda **options: LongEdgeBucket(640, **options),
    ],
)
def test_no_image_is_enlarged_more_than_max_upscale(make: Callable[..., Bucket], limit: float) -> None:
    free, result = make(min_side=128).assign(SIZES, 8), make(max_upscale=limit, min_side=128).assign(SIZES, 8)
    for size, index, before in zip(SIZES, result.index, free.index, strict=True):
        wanted = free.targets[before]
        enlarged = max(wanted[0] / size[0], wanted[1] / size[1])
        if index < 0:
            assert enlarged > limit
            continue
        target = result.targets[index]
        assert max(target[0] / size[0], target[1] / size[1]) <= limit
        assert min(target) >= 128
        if enlarged <= limit:
            assert target == wanted  # those that are large enough keep their size
        else:
            assert target[0] * target[1] > 0.3 * limit**2 * size.prod() * kept(size, target)  # and not far below
    assert result.shrunk is not None
    assert 0 < result.shrunk.sum() < len(SIZES)


def test_saved_sizes_are_those_of_the_run_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sizes.json"
    first = RatioBucket(512 * 512, num_buckets=5, save=path).assign(SIZES, 8)
    assert load_sizes(path) == first.targets
    again = RatioBucket(file=path).assign(SIZES[:40], 8)
    assert set(again.targets) <= set(first.targets)
    for size, index in zip(SIZES[:40], again.index, strict=True):
        assert kept(size, again.targets[index]) == max(kept(size, target) for target in first.targets)
    assert [file.name for file in path.parent.iterdir()] == ["sizes.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[64, 64", "is no JSON .*; use what save wrote"),
        ("[[64, 64]]", r'has no sizes; write {"sizes": \[\[height, width\], ...\]}'),
        ('{"sizes": []}', "has no sizes"),
        ('{"sizes": [[64, 64]], "more": 1}', "has no sizes"),
        ('{"sizes": [[64, 64], [64, 0]]}', r"sizes\[1\]: \[64, 0\] is no size; use \[height, width\]"),
        ('{"sizes": [[64, 64.0]]}', r"sizes\[0\]: \[64, 64.0\] is no size"),
        ('{"sizes": [[64, 60]]}', r"sizes\[0\]: sides must divide by 8, those of 64 x 60 do not"),
    ],
)
def test_a_file_that_holds_no_sizes_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sizes.json").write_text(content)
    with pytest.raises(ValueError, match=f"^data.main.bucket.file: .*{message}"):
        assign(RatioBucket(file=tmp_path / "sizes.json"), SIZES, 8, "data.main.bucket")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^data.main.bucket\[1\].file: there is no file .*; write it with save"
    ):
        assign([FixedBucket(8), RatioBucket(file=tmp_path / "none.json")], SIZES, 8, "data.main.bucket")


def test_sizes_are_saved_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    save_sizes(path, [(8, 16)])
    assert path.read_text() == '{"sizes": [[8, 16]]}\n'
    with pytest.raises(TypeError):
        save_sizes(path, [(8, object())])  # type: ignore[list-item]
    assert load_sizes(path) == [(8, 16)]


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
        (lambda: RatioBucket(), "area: it is missing"),
        (lambda: RatioBucket(64, ratios=["1:1"], num_buckets=3), "num_buckets: there are as many sizes as ratios"),
        (lambda: RatioBucket(64, file="a.json"), "area: the sizes come from a.json; leave area or file out"),
        (lambda: RatioBucket(file="a.json", save="b.json"), "save: the sizes come from a.json"),
        (lambda: RatioBucket(64, min_side=9), "min_side: 9 is longer than the side of a square of 64 pixels; use 8"),
        (lambda: RatioBucket(64, min_side=0), "min_side: 0 is no side"),
        (lambda: RatioBucket(64, max_upscale=0), "max_upscale: 0 suits no image"),
        (lambda: RatioSizeBucket(0), "max_area: 0 is no number of pixels"),
        (lambda: LongEdgeBucket(0), "edge: 0 is no number of pixels"),
        (lambda: LongEdgeBucket(8, min_side=9), "min_side: 9 is longer than edge; use 8 or less"),
        (lambda: SizeBucket(step=12).assign(SIZES, 8), "step: 12 is no multiple of 8"),
        (lambda: SizeBucket(num_buckets=0), "num_buckets: 0 is too few"),
        (lambda: RatioGridBucket(64, ratio_max=0.5), "ratio_max: 0.5 is below 1"),
    ],
)
def test_wrong_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
