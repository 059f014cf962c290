"""Sizes near those of the images, without scaling."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import at_least_1
from hcpdiff.data.buckets.base import Assignment, Size, cheapest, check_settings, distinct, on_grid, settle, step_for
from hcpdiff.data.buckets.kmeans import kmeans_plane


class SizeBucket:
    """Images keep their pixels: none is scaled; smaller ones are padded at the right and bottom, larger ones cropped.

    The sizes are found by k-means on (width, height) of the images, each rounded to a multiple of `step`. An image gets
    the size with the fewest pixels that are cut away or padded. Padding has no loss. For pixel art, documents and the
    like; a large image is a large batch, so look at the sizes that `hcpdiff data` prints.

    Args:
        num_buckets: at most so many sizes. Equal sizes are merged.
        step: sides are multiples of this; by default of what the model needs.
        min_side: no side is shorter.
    """

    def __init__(
        self,
        *,
        num_buckets: Annotated[int, at_least_1] = 10,
        step: Annotated[int, at_least_1] | None = None,
        min_side: Annotated[int, at_least_1] = 1,
    ) -> None:
        check_settings(num_buckets=num_buckets, step=step, min_side=min_side)
        self.num_buckets = num_buckets
        self.step = step
        self.min_side = min_side

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        step = step_for(self.step, multiple_of)
        centers = kmeans_plane(*distinct(sizes), self.num_buckets).tolist()
        targets: list[Size] = sorted(
            {(on_grid(height, step, self.min_side), on_grid(width, step, self.min_side)) for height, width in centers}
        )
        goals = np.array(targets, dtype=np.float64)

        def wasted(part: np.ndarray) -> np.ndarray:
            shared = np.minimum(part[:, None, :], goals[None, :, :]).prod(axis=2)
            return part.prod(axis=1, dtype=np.float64)[:, None] + goals.prod(axis=1)[None, :] - 2 * shared

        return settle(targets, cheapest(sizes, wasted), resize=False)
