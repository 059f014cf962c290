"""Which sizes a dataset is trained at, and which of them each image gets. A batch holds one size only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import numpy as np

from hcpdiff.config.ranges import Range, at_least_1


@dataclass(frozen=True)
class Assignment:
    """The sizes in use, and for each image the one that it is cut to."""

    targets: list[tuple[int, int]]  # (height, width), all different
    index: np.ndarray  # (N,) int64, into `targets`


@runtime_checkable
class Bucket(Protocol):
    """Any class with this method is a bucket; write your own and name it by `_target_`."""

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        """Choose sizes for these images.

        Args:
            sizes: (N, 2) of the images, (height, width).
            multiple_of: what every side must divide by.
        """
        ...


class FixedBucket:
    """One size for all: an int for a square, or [height, width]."""

    def __init__(self, size: int | Sequence[int]) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"size: {size!r} is no size; use an int or [height, width]")
        self.size = (int(sides[0]), int(sides[1]))

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        for side in self.size:
            if side % multiple_of:
                near = max(multiple_of, side // multiple_of * multiple_of)
                raise ValueError(
                    f"size: the model needs sides that divide by {multiple_of}, {side} does not; use {near}"
                )
        return Assignment([self.size], np.zeros(len(sizes), dtype=np.int64))


class RatioBucket:
    """Sizes of about equal area and different aspect ratios; each image gets the one that cuts least of it away.

    Args:
        area: pixels of an image, e.g. 262144 for 512 x 512.
        num_buckets: at most so many sizes, by k-means on log2(width / height) of the images. Equal sizes are merged.
        ratios: use these instead: numbers width / height, or texts like "3:4" (width to height; YAML needs the quotes).
        step: sides are multiples of this; by default of what the model needs.
    """

    def __init__(
        self,
        area: Annotated[int, at_least_1],
        *,
        num_buckets: Annotated[int, at_least_1] = 10,
        ratios: Sequence[float | str] | None = None,
        step: Annotated[int, at_least_1] | None = None,
    ) -> None:
        _check_counts(area, num_buckets, step)
        self.area = area
        self.num_buckets = num_buckets
        self.step = step
        self.ratios = None if ratios is None else [_ratio(ratio, f"ratios[{i}]") for i, ratio in enumerate(ratios)]
        if self.ratios == []:
            raise ValueError('ratios: the list is empty; write some, e.g. ["1:1", "3:4", "4:3"]')

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        step = _step(self.step, multiple_of)
        if self.ratios is None:
            centers = kmeans(log_ratios(sizes), self.num_buckets)[0]
        else:
            centers = np.log2(np.array(self.ratios))
        targets = sorted({_size_of(2.0**center, self.area, step) for center in centers}, key=_log_ratio)
        return nearest(sizes, targets)


class RatioGridBucket:
    """Sizes chosen from a grid, whatever the images are: so datasets and runs can share them.

    Of all sizes on the grid with a ratio up to about `ratio_max`, the 3 * num_buckets with the area nearest to `area`
    are clustered by k-means on log2(width / height); each cluster gives the size nearest to its median ratio.

    Args:
        area: pixels of an image.
        num_buckets: how many sizes.
        ratio_max: longest side by shortest, at most about this.
        step: sides are multiples of this; by default of what the model needs.
    """

    def __init__(
        self,
        area: Annotated[int, at_least_1],
        *,
        num_buckets: Annotated[int, at_least_1] = 10,
        ratio_max: Annotated[float, Range(ge=1)] = 4.0,
        step: Annotated[int, at_least_1] | None = None,
    ) -> None:
        _check_counts(area, num_buckets, step)
        if ratio_max < 1:
            raise ValueError(f"ratio_max: {ratio_max} is below 1; it is the longest side by the shortest")
        self.area = area
        self.num_buckets = num_buckets
        self.ratio_max = ratio_max
        self.step = step

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        return nearest(sizes, self.targets(_step(self.step, multiple_of)))

    def targets(self, step: int) -> list[tuple[int, int]]:
        """The sizes, from the tallest to the widest."""
        low = max(step, int(math.sqrt(self.area / self.ratio_max)) // step * step)
        high = max(low, int(self.ratio_max * low) // step * step)
        sides = np.arange(low, high + 1, step)
        grid = np.stack(np.meshgrid(sides, sides, indexing="ij"), axis=-1).reshape(-1, 2)
        closest = np.argsort(np.abs(grid.prod(axis=1) - self.area), kind="stable")[: 3 * self.num_buckets]
        grid = grid[np.sort(closest)]
        ratios = log_ratios(grid)
        labels = kmeans(ratios, self.num_buckets)[1]
        chosen = set()
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            middle = members[np.argmin(np.abs(ratios[members] - np.median(ratios[members])))]
            chosen.add((int(grid[middle, 0]), int(grid[middle, 1])))
        return sorted(chosen, key=_log_ratio)


def log_ratios(sizes: np.ndarray) -> np.ndarray:
    """log2(width / height) of (N, 2) sizes."""
    return np.log2(sizes[:, 1] / sizes[:, 0])


def nearest(sizes: np.ndarray, targets: list[tuple[int, int]]) -> Assignment:
    """Give each image the target that cuts least of it away, and leave out targets that no image gets.

    What is left of an image with ratio r, cut to a target with ratio t, is min(r / t, t / r) of its area.
    """
    goals = log_ratios(np.array(targets, dtype=np.float64))
    index = np.abs(log_ratios(sizes)[:, None] - goals[None, :]).argmin(axis=1)
    used, index = np.unique(index, return_inverse=True)
    return Assignment([targets[i] for i in used], index.astype(np.int64))


def kmeans(values: np.ndarray, count: int, *, resolution: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """The best clustering of numbers into at most `count` groups, by least squares.

    In one dimension clusters are intervals, so the optimum is found by dynamic programming: no seeds, no local minima.
    More than `resolution` different values are first gathered into so many equal bins.

    Returns:
        (centers, ascending; the group of each value). Fewer than `count` groups if there are fewer different values.
    """
    points, member, weight = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
    if len(points) > resolution:
        edges = np.linspace(points[0], points[-1], resolution + 1)[1:-1]
        _, bins = np.unique(np.searchsorted(edges, points), return_inverse=True)
        totals = np.bincount(bins, weights=weight)
        points = np.bincount(bins, weights=weight * points) / totals
        weight, member = totals, bins[member]
    labels = _intervals(points, weight.astype(np.float64), min(count, len(points)))
    centers = np.bincount(labels, weights=weight * points) / np.bincount(labels, weights=weight)
    return centers, labels[member]


def _intervals(points: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Labels that split sorted points into `count` runs with the least weighted sum of squares."""
    sums = [np.concatenate([[0.0], np.cumsum(weight * points**power)]) for power in (0, 1, 2)]
    zeroth, first, second = (s[None, 1:] - s[:-1, None] for s in sums)  # [i, j]: over points i..j
    spread = np.where(zeroth > 0, second - first**2 / np.where(zeroth > 0, zeroth, 1), np.inf)
    best, starts = spread[0], [np.zeros(len(points), dtype=np.int64)]
    for _ in range(1, count):
        total = np.concatenate([[np.inf], best[:-1]])[:, None] + spread  # the last run starts at i
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    labels = np.empty(len(points), dtype=np.int64)
    end = len(points)
    for label in reversed(range(count)):
        start = starts[label][end - 1]
        labels[start:end] = label
        end = start
    return labels


def _size_of(ratio: float, area: int, step: int) -> tuple[int, int]:
    height = math.sqrt(area / ratio)
    return max(step, round(height / step) * step), max(step, round(height * ratio / step) * step)


def _log_ratio(size: tuple[int, int]) -> tuple[float, int]:
    return math.log2(size[1] / size[0]), size[0]


def _ratio(ratio: float | str, where: str) -> float:
    """ "3:4" or 0.75 as width / height."""
    try:
        width, colon, height = str(ratio).partition(":")
        value = float(width) / float(height) if colon else float(ratio)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if isinstance(ratio, int) and ratio > 20:
        raise ValueError(f'{where}: {ratio} is no aspect ratio; write "{ratio // 60}:{ratio % 60}" with quotes in YAML')
    if not 0.02 < value < 50:
        raise ValueError(f'{where}: {ratio!r} is no aspect ratio; use "width:height" such as "3:4", or a number')
    return value


def _step(step: int | None, multiple_of: int) -> int:
    if step is not None and step % multiple_of:
        raise ValueError(
            f"step: {step} is no multiple of {multiple_of}, which the model needs; leave it out or use one"
        )
    return step or multiple_of


def _check_counts(area: int, num_buckets: int, step: int | None) -> None:
    if area < 1:
        raise ValueError(f"area: {area} is no number of pixels; use e.g. 262144 for 512 x 512")
    if num_buckets < 1:
        raise ValueError(f"num_buckets: {num_buckets} is too few; use 1 or more")
    if step is not None and step < 1:
        raise ValueError(f"step: {step} is too small; use 1 or more")
