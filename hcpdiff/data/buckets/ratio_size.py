"""Sizes by aspect ratio and area."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import at_least_1, positive
from hcpdiff.data.buckets.base import (
    Assignment,
    cheapest,
    check_area,
    check_settings,
    distinct,
    settle,
    shrink,
    size_of,
    step_for,
)
from hcpdiff.data.buckets.kmeans import kmeans_plane


class RatioSizeBucket:
    """Sizes of different aspect ratios and areas, so that small images stay small.

    The sizes are found by k-means on log2(width / height) and log2(min(width * height, max_area)); a center (r, a)
    gives the height sqrt(2^a / 2^r) and the width height * 2^r, each rounded to a multiple of `step`. An image gets the
    size nearest to it in this plane.

    Args:
        max_area: the largest area in pixels; images above it are scaled down to it.
        num_buckets: at most so many sizes. Equal sizes are merged.
        step: sides are multiples of this; by default of what the model needs.
        min_side: no side is shorter.
        max_upscale: images that would be enlarged more than so many times get a smaller size, of a half, a quarter ...
            of the area; if a side of that is below `min_side` they are left out. By default all are enlarged.
    """

    def __init__(
        self,
        max_area: Annotated[int, at_least_1],
        *,
        num_buckets: Annotated[int, at_least_1] = 10,
        step: Annotated[int, at_least_1] | None = None,
        min_side: Annotated[int, at_least_1] = 1,
        max_upscale: Annotated[float, positive] | None = None,
    ) -> None:
        check_settings(num_buckets=num_buckets, step=step, min_side=min_side, max_upscale=max_upscale)
        check_area(max_area, "max_area", min_side)
        self.max_area = max_area
        self.num_buckets = num_buckets
        self.step = step
        self.min_side = min_side
        self.max_upscale = max_upscale

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        step = step_for(self.step, multiple_of)
        shapes, counts = distinct(sizes)
        points, group = np.unique(self._place(shapes).round(9), axis=0, return_inverse=True)
        centers = kmeans_plane(points, np.bincount(group.ravel(), weights=counts), self.num_buckets).tolist()
        targets = sorted({size_of(2.0**ratio, 2.0**area, step, self.min_side) for ratio, area in centers})
        goals = self._place(np.array(targets))

        def distance(part: np.ndarray) -> np.ndarray:
            return ((self._place(part)[:, None, :] - goals[None, :, :]) ** 2).sum(axis=2)

        assignment = settle(targets, cheapest(sizes, distance))
        return shrink(assignment, sizes, self.max_upscale, step, self.min_side)

    def _place(self, sizes: np.ndarray) -> np.ndarray:
        """(N, 2) sizes as points (log2 of the ratio, log2 of the area)."""
        height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
        return np.stack([np.log2(width / height), np.log2(np.minimum(width * height, self.max_area))], axis=1)
