"""Several buckets for one dataset, images without a size, and sizes with too few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hcpdiff.data.buckets.base import Assignment, Bucket, Size, log_ratios, settle
from hcpdiff.data.scan import BadFile, Items, located


def assign(bucket: Bucket | Sequence[Bucket], sizes: np.ndarray, multiple_of: int, where: str) -> Assignment:
    """What a bucket, or several for several resolutions, make of these images.

    Args:
        sizes: (N, 2) of the images, (height, width).
        multiple_of: what every side must divide by.
        where: of the buckets, in the config.

    Raises:
        ValueError, FileNotFoundError: a bucket does not suit the model; the message begins with `where`.
    """
    if not isinstance(bucket, Sequence):
        with located(where):
            return bucket.assign(sizes, multiple_of)
    parts = []
    for number, one in enumerate(bucket):
        with located(f"{where}[{number}]"):
            parts.append(one.assign(sizes, multiple_of))
    if len({part.resize for part in parts}) > 1:
        raise ValueError(f"{where}: some of the buckets scale images and some do not; use one kind only")
    return combine(parts)


def combine(assignments: Sequence[Assignment]) -> Assignment:
    """Several resolutions of each image: its size of every assignment, each size once.

    An image that is too small for a resolution lacks it, if it is large enough for another one; else it has the largest
    of the sizes that were made smaller for it.

    Args:
        assignments: of the same images.
    """
    if len(assignments) == 1:
        return assignments[0]
    starts = np.cumsum([0, *(len(one.targets) for one in assignments)]).tolist()
    targets = [size for one in assignments for size in one.targets]
    parts = [
        np.where(one.columns < 0, -1, one.columns + start) for one, start in zip(assignments, starts, strict=False)
    ]
    index = np.concatenate(parts, axis=1, dtype=np.int32)
    made = np.concatenate([_shrunk(one) for one in assignments], axis=1)
    merged = settle(targets, _without_needless(index, made, targets), assignments[0].resize)
    return settle(merged.targets, _each_once(merged.index), merged.resize)


def _shrunk(assignment: Assignment) -> np.ndarray:
    """(N, K) bool, which sizes were made smaller for their images."""
    if assignment.shrunk is None:
        return np.zeros(assignment.columns.shape, dtype=bool)
    return np.broadcast_to(assignment.shrunk[:, None], assignment.columns.shape)


def _without_needless(index: np.ndarray, made: np.ndarray, targets: Sequence[Size]) -> np.ndarray:
    """Sizes made for small images stay only where an image has no other, and of them the largest."""
    made = made & (index >= 0)
    rows = np.flatnonzero(made.any(axis=1))
    part, made = index[rows].copy(), made[rows]
    proper = ((part >= 0) & ~made).any(axis=1)
    area = np.append(np.prod(np.array(targets, dtype=np.float64), axis=1), 0)[part]  # the last is for -1
    largest = np.arange(part.shape[1])[None, :] == area.argmax(axis=1)[:, None]
    part[made & (proper[:, None] | ~largest)] = -1
    result = index.copy()
    result[rows] = part
    return result


def _each_once(index: np.ndarray) -> np.ndarray:
    result = index.copy()
    for later in range(1, index.shape[1]):
        for earlier in range(later):
            result[index[:, later] == index[:, earlier], later] = -1
    return result


def leave_out(items: Items, assignment: Assignment) -> tuple[Items, Assignment, list[BadFile]]:
    """The images that have a size, what they are assigned, and a list of the others, which are too small."""
    left = assignment.left_out
    if not len(left):
        return items, assignment, []
    small = []
    for item in left.tolist():
        height, width = items.sizes[item].tolist()
        reason = f"{height} x {width} is too small; lower the bucket's min_side, or raise or leave out its max_upscale"
        small.append(BadFile(items.key(item), reason))
    kept = np.ones(len(items), dtype=bool)
    kept[left] = False
    arrays = {name: getattr(items, name)[kept] for name in ("source", "local", "sizes", "repeats")}
    return replace(items, **arrays), assignment.only(kept), small


def merge_small(assignment: Assignment, repeats: np.ndarray, batch_size: int) -> Assignment:
    """Sizes that fewer samples have than a batch holds are given up, and their images get the nearest other size.

    The smallest goes first. Nearest is by the ratio, and then by the area: |log2 r - log2 s| + |log2 a - log2 b| / 4.
    An image may be enlarged more than `max_upscale` by this.

    Args:
        repeats: (N,) how often an epoch shows each image.
    """
    columns = assignment.columns
    count = np.zeros(len(assignment.targets))
    for column in columns.T:
        count += np.bincount(column[column >= 0], weights=repeats[column >= 0], minlength=len(count))
    sizes = np.array(assignment.targets, dtype=np.float64).reshape(-1, 2)
    ratios, areas = log_ratios(sizes), np.log2(sizes.prod(axis=1))
    to = np.arange(len(count))
    alive = np.ones(len(count), dtype=bool)
    while alive.sum() > 1:
        smallest = int(np.argmin(np.where(alive, count, np.inf)))
        if count[smallest] >= batch_size:
            break
        alive[smallest] = False
        gap = np.abs(ratios - ratios[smallest]) + np.abs(areas - areas[smallest]) / 4
        target = int(np.argmin(np.where(alive, gap, np.inf)))
        count[target] += count[smallest]
        to[to == smallest] = target
    renumber = np.append(to, -1).astype(np.int32)  # the last is for -1
    return settle(assignment.targets, renumber[assignment.index], assignment.resize, assignment.shrunk)


def check_sides(items: Items, assignment: Assignment, max_side: int | None, where: str) -> None:
    """Raise for sizes that the model cannot place, with an image that gets such a one.

    Args:
        max_side: the longest side that it can, in pixels; None: any.
        where: of the bucket, in the config.
    """
    for number, size in enumerate(assignment.targets):
        if max_side is not None and max(size) > max_side:
            example = items.key(int(np.flatnonzero((assignment.columns == number).any(axis=1))[0]))
            raise ValueError(
                f"{where}: {size[0]} x {size[1]}, e.g. for {example}, is longer than the {max_side} pixels that "
                "the model has positions for; use smaller sizes, or leave such images out"
            )
