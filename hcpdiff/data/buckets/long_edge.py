"""Sizes of one long edge."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import at_least_1, positive
from hcpdiff.data.buckets.base import (
    Assignment,
    by_ratio,
    check_settings,
    distinct,
    nearest,
    on_grid,
    shrink,
    step_for,
)
from hcpdiff.data.buckets.kmeans import kmeans_plane


class LongEdgeBucket:
    """Sizes whose long edge is about the same; each image gets the one that cuts least of it away.

    Every image is thought of as scaled until its long edge is `edge`; k-means on (width, height) of these gives the
    sizes, each rounded to a multiple of `step`.

    Args:
        edge: pixels of the long edge.
        num_buckets: at most so many sizes. Equal sizes are merged.
        step: sides are multiples of this; by default of what the model needs.
        min_side: no side is shorter.
        max_upscale: images that would be enlarged more than so many times get a smaller size, of a half, a quarter ...
            of the area; if a side of that is below `min_side` they are left out. By default all are enlarged.
    """

    def __init__(
        self,
        edge: Annotated[int, at_least_1],
        *,
        num_buckets: Annotated[int, at_least_1] = 10,
        step: Annotated[int, at_least_1] | None = None,
        min_side: Annotated[int, at_least_1] = 1,
        max_upscale: Annotated[float, positive] | None = None,
    ) -> None:
        check_settings(num_buckets=num_buckets, step=step, min_side=min_side, max_upscale=max_upscale)
        if edge < 1:
            raise ValueError(f"edge: {edge} is no number of pixels; use e.g. 512")
        if min_side > edge:
            raise ValueError(f"min_side: {min_side} is longer than edge; use {edge} or less")
        self.edge = edge
        self.num_buckets = num_buckets
        self.step = step
        self.min_side = min_side
        self.max_upscale = max_upscale

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        step = step_for(self.step, multiple_of)
        shapes, counts = distinct(sizes)
        scaled = shapes * (self.edge / shapes.max(axis=1))[:, None]
        points, group = np.unique(scaled.round(6), axis=0, return_inverse=True)
        centers = kmeans_plane(points, np.bincount(group.ravel(), weights=counts), self.num_buckets).tolist()
        targets = {
            (on_grid(height, step, self.min_side), on_grid(width, step, self.min_side)) for height, width in centers
        }
        return shrink(nearest(sizes, sorted(targets, key=by_ratio)), sizes, self.max_upscale, step, self.min_side)
