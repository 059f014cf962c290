"""One size for all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import positive
from hcpdiff.data.buckets.base import Assignment, check_settings, settle, upscale


class FixedBucket:
    """One size for all.

    Args:
        size: a number for a square, or [height, width].
        max_upscale: leave out images that would be enlarged more than so many times; by default none.
    """

    def __init__(self, size: int | Sequence[int], *, max_upscale: Annotated[float, positive] | None = None) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"size: {size!r} is no size; use an int or [height, width]")
        check_settings(max_upscale=max_upscale)
        self.size = (int(sides[0]), int(sides[1]))
        self.max_upscale = max_upscale

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        for side in self.size:
            if side % multiple_of:
                near = max(multiple_of, side // multiple_of * multiple_of)
                raise ValueError(
                    f"size: the model needs sides that divide by {multiple_of}, {side} does not; use {near}"
                )
        index = np.zeros(len(sizes), dtype=np.int32)
        if self.max_upscale is not None:
            index[upscale(sizes, np.array(self.size)) > self.max_upscale] = -1
        return settle([self.size], index)
