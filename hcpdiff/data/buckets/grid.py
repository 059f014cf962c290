"""Sizes that do not depend on the images."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import Range, at_least_1, positive
from hcpdiff.data.buckets.base import (
    Assignment,
    Size,
    by_ratio,
    check_area,
    check_settings,
    log_ratios,
    nearest,
    on_grid,
    shrink,
    step_for,
)
from hcpdiff.data.buckets.kmeans import kmeans


class RatioGridBucket:
    """Sizes chosen from a grid, whatever the images are: so datasets and runs can share them.

    Of all sizes on the grid with a ratio up to about `ratio_max`, the 3 * num_buckets with the area nearest to `area`
    are clustered by k-means on log2(width / height); each cluster gives the size nearest to its median ratio.

    Args:
        area: pixels of an image.
        num_buckets: how many sizes.
        ratio_max: longest side by shortest, at most about this.
        step: sides are multiples of this; by default of what the model needs.
        min_side: no side is shorter.
        max_upscale: images that would be enlarged more than so many times get a smaller size, of a half, a quarter ...
            of the area; if a side of that is below `min_side` they are left out. By default all are enlarged.
    """

    def __init__(
        self,
        area: Annotated[int, at_least_1],
        *,
        num_buckets: Annotated[int, at_least_1] = 10,
        ratio_max: Annotated[float, Range(ge=1)] = 4.0,
        step: Annotated[int, at_least_1] | None = None,
        min_side: Annotated[int, at_least_1] = 1,
        max_upscale: Annotated[float, positive] | None = None,
    ) -> None:
        check_settings(num_buckets=num_buckets, step=step, min_side=min_side, max_upscale=max_upscale)
        check_area(area, "area", min_side)
        if ratio_max < 1:
            raise ValueError(f"ratio_max: {ratio_max} is below 1; it is the longest side by the shortest")
        self.area = area
        self.num_buckets = num_buckets
        self.ratio_max = ratio_max
        self.step = step
        self.min_side = min_side
        self.max_upscale = max_upscale

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        step = step_for(self.step, multiple_of)
        return shrink(nearest(sizes, self.targets(step)), sizes, self.max_upscale, step, self.min_side)

    def targets(self, step: int) -> list[Size]:
        """The sizes, from the tallest to the widest."""
        low = max(int(math.sqrt(self.area / self.ratio_max)) // step * step, on_grid(0, step, self.min_side))
        high = max(low, int(self.ratio_max * low) // step * step)
        sides = np.arange(low, high + 1, step)
        grid = np.stack(np.meshgrid(sides, sides, indexing="ij"), axis=-1).reshape(-1, 2)
        closest = np.argsort(np.abs(grid.prod(axis=1) - self.area), kind="stable")[: 3 * self.num_buckets]
        grid = grid[np.sort(closest)]
        ratios = log_ratios(grid)
        labels = kmeans(ratios, self.num_buckets)[1]
        chosen: set[Size] = set()
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            middle = members[np.argmin(np.abs(ratios[members] - np.median(ratios[members])))]
            chosen.add((int(grid[middle, 0]), int(grid[middle, 1])))
        return sorted(chosen, key=by_ratio)
