"""Sizes of about equal area, by aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import at_least_1, positive
from hcpdiff.data.buckets.base import (
    Assignment,
    Size,
    by_ratio,
    check_area,
    check_settings,
    log_ratios,
    nearest,
    shrink,
    size_of,
    step_for,
)
from hcpdiff.data.buckets.kmeans import kmeans
from hcpdiff.data.buckets.saved import load_sizes, save_sizes


class RatioBucket:
    """Sizes of about equal area and different aspect ratios; each image gets the one that cuts least of it away.

    Args:
        area: pixels of an image, e.g. 262144 for 512 x 512.
        num_buckets: at most so many sizes, 10 by default, by k-means on log2(width / height) of the images. A center c
            gives the height sqrt(area / 2^c) and the width height * 2^c, each rounded to a multiple of `step`. Equal
            sizes are merged.
        ratios: use these instead: numbers width / height, or texts like "3:4" (width to height; YAML needs the quotes).
        file: use the sizes of this file instead, which `save` wrote in an earlier run, so that both runs have the same.
        save: write the sizes of this run to this file, JSON: {"sizes": [[height, width], ...]}.
        step: sides are multiples of this; by default of what the model needs.
        min_side: no side is shorter; sizes of an extreme ratio are less extreme instead.
        max_upscale: images that would be enlarged more than so many times get a smaller size, of a half, a quarter ...
            of the area; if a side of that is below `min_side` they are left out. By default all are enlarged.
    """

    def __init__(
        self,
        area: Annotated[int, at_least_1] | None = None,
        *,
        num_buckets: Annotated[int, at_least_1] | None = None,
        ratios: Sequence[float | str] | None = None,
        file: str | Path | None = None,
        save: str | Path | None = None,
        step: Annotated[int, at_least_1] | None = None,
        min_side: Annotated[int, at_least_1] = 1,
        max_upscale: Annotated[float, positive] | None = None,
    ) -> None:
        check_settings(num_buckets=num_buckets, step=step, min_side=min_side, max_upscale=max_upscale)
        if ratios is not None and num_buckets is not None:
            raise ValueError("num_buckets: there are as many sizes as ratios; leave one of the two out")
        if file is None and area is None:
            raise ValueError("area: it is missing; give the pixels of an image, e.g. 262144 for 512 x 512")
        if file is not None:
            others = {"area": area, "num_buckets": num_buckets, "ratios": ratios, "save": save}
            for key in (key for key, value in others.items() if value is not None):
                raise ValueError(f"{key}: the sizes come from {file}; leave {key} or file out")
        if area is not None:
            check_area(area, "area", min_side)
        self.area = area
        self.num_buckets = num_buckets or 10
        self.file = None if file is None else Path(file).expanduser()
        self.save = None if save is None else Path(save).expanduser()
        self.step = step
        self.min_side = min_side
        self.max_upscale = max_upscale
        self.ratios = None if ratios is None else [_ratio(ratio, f"ratios[{i}]") for i, ratio in enumerate(ratios)]
        if self.ratios == []:
            raise ValueError('ratios: the list is empty; write some, e.g. ["1:1", "3:4", "4:3"]')

    def assign(self, sizes: np.ndarray, multiple_of: int) -> Assignment:
        step = step_for(self.step, multiple_of)
        targets = self._targets(sizes, step)
        if self.save is not None:
            save_sizes(self.save, targets)
        return shrink(nearest(sizes, targets), sizes, self.max_upscale, step, self.min_side)

    def _targets(self, sizes: np.ndarray, step: int) -> list[Size]:
        if self.file is not None:
            return sorted(load_sizes(self.file, step), key=by_ratio)
        centers = kmeans(log_ratios(sizes), self.num_buckets)[0] if self.ratios is None else np.log2(self.ratios)
        area = self.area or 1
        return sorted({size_of(2.0**center, area, step, self.min_side) for center in centers.tolist()}, key=by_ratio)


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
