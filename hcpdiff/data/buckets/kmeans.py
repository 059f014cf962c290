"""Clustering of image sizes: exact in one dimension, k-means++ with restarts in two. Nothing in it is random."""

from __future__ import annotations

import numpy as np

_SEED, _RESTARTS, _ROUNDS = 3407, 8, 100
_CELLS = 64  # along each of two dimensions


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


def kmeans_plane(points: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """A good clustering of points in the plane into at most `count` groups, by least squares: Lloyd's algorithm.

    It starts eight times from points drawn by k-means++ (Arthur and Vassilvitskii, 2007), always the same, and keeps
    the best. More than 4096 points are first gathered in a grid.

    Args:
        points: (P, 2), all different.
        weight: (P,) how often each occurs.

    Returns:
        (K, 2) centers, sorted. K is `count`, or fewer if there are fewer points.
    """
    points, weight = _gathered(points.astype(np.float64), weight.astype(np.float64))
    if len(points) <= count:
        return points[np.lexsort(points.T)]
    rng = np.random.default_rng(_SEED)
    runs = [_lloyd(points, weight, _spread_out(points, weight, count, rng)) for _ in range(_RESTARTS)]
    centers = min(runs, key=lambda run: run[1])[0]
    return centers[np.lexsort(centers.T)]


def _gathered(points: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 4096 points: the means of the cells of a grid."""
    if len(points) <= _CELLS**2:
        return points, weight
    low = points.min(axis=0)
    extent = np.maximum(points.max(axis=0) - low, 1e-12)
    cell = np.minimum(((points - low) / extent * _CELLS).astype(np.int64), _CELLS - 1)
    _, group = np.unique(cell[:, 0] * _CELLS + cell[:, 1], return_inverse=True)
    return _means(points, weight, group), np.bincount(group, weights=weight)


def _spread_out(points: np.ndarray, weight: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Centers drawn from the points, each with a probability by its squared distance to those before."""
    chosen = [_draw(weight, rng)]
    gap = _squares(points, points[chosen]).min(axis=1)
    for _ in range(1, count):
        chosen.append(_draw(weight * gap, rng))
        gap = np.minimum(gap, _squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _lloyd(points: np.ndarray, weight: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    """The centers after moving each to the mean of its points until nothing changes, and the sum of squares."""
    labels = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        moved = _squares(points, centers).argmin(axis=1)
        if np.array_equal(moved, labels):
            break
        labels = np.unique(moved, return_inverse=True)[1]  # a group that lost all its points is gone
        centers = _means(points, weight, labels)
    return centers, float((_squares(points, centers).min(axis=1) * weight).sum())


def _squares(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return ((points[:, None, :] - centers[None, :, :]) ** 2).sum(axis=2)


def _means(points: np.ndarray, weight: np.ndarray, group: np.ndarray) -> np.ndarray:
    total = np.bincount(group, weights=weight)
    return np.stack([np.bincount(group, weights=weight * axis) / total for axis in points.T], axis=1)


def _draw(weight: np.ndarray, rng: np.random.Generator) -> int:
    steps = np.cumsum(weight)
    return int(np.searchsorted(steps, rng.random() * steps[-1], side="right"))


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
