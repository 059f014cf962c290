"""What a bucket is, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Size = tuple[int, int]  # (height, width)

_CHUNK = 1 << 14  # images whose costs are in memory at once


@dataclass(frozen=True)
class Assignment:
    """The sizes in use, and for each image the one that it is cut to, or several for several resolutions."""

    targets: list[Size]  # (height, width), all different
    index: np.ndarray  # (N,), or (N, K) for K resolutions of each image; int32 into `targets`, -1 for none
    resize: bool = True  # False: images are not scaled, but padded at the right and bottom, or cropped
    shrunk: np.ndarray | None = None  # (N,) bool: the size is smaller than others of the bucket, as the image is small

    @property
    def columns(self) -> np.ndarray:
        """`index` as (N, K), of one resolution too."""
        return self.index.reshape(len(self.index), -1)

    @property
    def left_out(self) -> np.ndarray:
        """Numbers of the images that no size suits: all are too small for `max_upscale` and `min_side`."""
        return np.flatnonzero((self.columns < 0).all(axis=1))

    def only(self, images: np.ndarray) -> Assignment:
        """The same for these images alone, by number or as (N,) bool."""
        return settle(
            self.targets, self.index[images], self.resize, None if self.shrunk is None else self.shrunk[images]
        )


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


def settle(
    targets: Sequence[Size], index: np.ndarray, resize: bool = True, shrunk: np.ndarray | None = None
) -> Assignment:
    """An assignment in which equal sizes are one, and sizes that no image gets are left out."""
    used = np.bincount(index[index >= 0], minlength=len(targets)) > 0
    distinct = list(dict.fromkeys(size for size, wanted in zip(targets, used.tolist(), strict=True) if wanted))
    number = {size: n for n, size in enumerate(distinct)}
    renumber = np.array([*(number.get(size, -1) for size in targets), -1], dtype=np.int32)  # the last is for -1
    return Assignment(distinct, renumber[index], resize, shrunk)


def nearest(sizes: np.ndarray, targets: Sequence[Size]) -> Assignment:
    """Give each image the target that cuts least of it away, the first of equals; targets that none gets are left out.

    What is left of an image with ratio r, cut to a target with ratio t, is min(r / t, t / r) of its area.
    """
    goals = log_ratios(np.array(targets))
    return settle(targets, cheapest(sizes, lambda part: np.abs(log_ratios(part)[:, None] - goals[None, :])))


def cheapest(sizes: np.ndarray, cost: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(N,) int32, the first target of least cost for each image; `cost` gives (n, targets) of some sizes."""
    index = np.empty(len(sizes), dtype=np.int32)
    for start in range(0, len(sizes), _CHUNK):
        index[start : start + _CHUNK] = cost(sizes[start : start + _CHUNK]).argmin(axis=1)
    return index


def shrink(
    assignment: Assignment, sizes: np.ndarray, max_upscale: float | None, step: int, min_side: int
) -> Assignment:
    """Smaller sizes for images that would be enlarged more than `max_upscale` times.

    They have the ratio of the image's size and a half, a quarter ... of its area, whichever is the first that fits. If
    that would have a side below `min_side`, the image gets none.
    """
    if max_upscale is None:
        return assignment
    targets, index = list(assignment.targets), assignment.index.copy()
    enlarged = upscale(sizes, np.array(targets)[index])
    shrunk = enlarged > max_upscale
    small = np.flatnonzero(shrunk)
    for number, target in enumerate(assignment.targets):
        left = small[assignment.index[small] == number]
        level = 1
        while len(left):
            size = _scaled(target, 0.5 ** (level / 2), step)
            if min(size) < max(min_side, step):
                index[left] = -1
                break
            fits = upscale(sizes[left], np.array(size)) <= max_upscale
            if fits.any():
                index[left[fits]] = len(targets)
                targets.append(size)
                left = left[~fits]
            level += 1
    return settle(targets, index, shrunk=shrunk)


def upscale(sizes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How many times larger an image becomes on each side to cover its target: (N, 2), (N, 2) or (2,) to (N,)."""
    return (targets / sizes).max(axis=1)


def log_ratios(sizes: np.ndarray) -> np.ndarray:
    """log2(width / height) of (N, 2) sizes."""
    return np.log2(sizes[:, 1] / sizes[:, 0])


def distinct(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different sizes, (U, 2), and how many images have each, (U,)."""
    codes, counts = np.unique(sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1].astype(np.int64), return_counts=True)
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1), counts


def size_of(ratio: float, area: float, step: int, min_side: int = 1) -> Size:
    """The size of about this ratio (width / height) and area, with sides that divide by `step`.

    If a side would be below `min_side`, the ratio is nearer to 1 instead.
    """
    limit = max(1.0, area / min_side**2)
    ratio = min(max(ratio, 1 / limit), limit)
    height = (area / ratio) ** 0.5
    return on_grid(height, step, min_side), on_grid(height * ratio, step, min_side)


def on_grid(side: float, step: int, min_side: int = 1) -> int:
    """The multiple of `step` that is nearest to a side, and at least `min_side`."""
    return max(-(-min_side // step) * step, round(side / step) * step)


def by_ratio(size: Size) -> tuple[float, int]:
    """Sorts sizes from the tallest to the widest, of equal ratio the largest first."""
    return float(np.log2(size[1] / size[0])), -size[0]


def step_for(step: int | None, multiple_of: int) -> int:
    """What sides divide by: the user's `step`, or else what the model needs.

    Raises:
        ValueError: the model cannot use this step.
    """
    if step is not None and step % multiple_of:
        raise ValueError(
            f"step: {step} is no multiple of {multiple_of}, which the model needs; leave it out or use one"
        )
    return step or multiple_of


def check_settings(
    *, num_buckets: int | None = None, step: int | None = None, min_side: int = 1, max_upscale: float | None = None
) -> None:
    """Raise a ValueError for a setting that is out of range."""
    if num_buckets is not None and num_buckets < 1:
        raise ValueError(f"num_buckets: {num_buckets} is too few; use 1 or more")
    if step is not None and step < 1:
        raise ValueError(f"step: {step} is too small; use 1 or more")
    if min_side < 1:
        raise ValueError(f"min_side: {min_side} is no side; use 1 or more")
    if max_upscale is not None and not max_upscale > 0:
        raise ValueError(f"max_upscale: {max_upscale} suits no image; use e.g. 1 to enlarge none, or 1.5")


def check_area(area: int, key: str, min_side: int) -> None:
    """Raise a ValueError for an area that is none, or that has no side of `min_side`."""
    if area < 1:
        raise ValueError(f"{key}: {area} is no number of pixels; use e.g. 262144 for 512 x 512")
    if min_side**2 > area:
        raise ValueError(
            f"min_side: {min_side} is longer than the side of a square of {area} pixels; use {int(area**0.5)} or less"
        )


def _scaled(size: Size, scale: float, step: int) -> Size:
    return round(size[0] * scale / step) * step, round(size[1] * scale / step) * step
