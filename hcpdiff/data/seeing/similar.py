"""Which images look alike: a hash of each, and groups of hashes that differ little."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SMALL = 8  # pixels a side of the colour copy that confirms what the hashes suggest
BITS = 64
ALIKE = 6  # bits that may differ
COLOUR = 14.0  # how much the small copies may differ, 0 to 255 on average
_BLOCK = 256  # hashes that are compared with each other at once, at least
_AT_ONCE = 1 << 21  # pairs that are compared at once
_NEXT = 32  # of pictures with equal hashes, each is compared with so many that are next to it in brightness
_OF_EACH = 8  # pictures of each of two close hashes that are compared

Pairs = tuple[np.ndarray, np.ndarray]


def perceptual_hash(grey: np.ndarray) -> int:
    """64 bits that hardly change when a picture is scaled, compressed or made brighter.

    The signs of the lowest frequencies of its cosine transform, relative to their median ("pHash").

    Args:
        grey: (32, 32) of the whole picture.
    """
    low = _COSINES @ grey.astype(np.float64) @ _COSINES.T
    values = low.reshape(-1)
    bits = values > np.median(values[1:])
    return int(np.packbits(bits).view(">u8")[0])


def alike(hashes: np.ndarray, small: np.ndarray, *, bits: int = ALIKE, colour: float = COLOUR) -> list[np.ndarray]:
    """Groups of pictures that look alike, the numbers in each ascending; pictures that stand alone are in none.

    Args:
        hashes: (N,) uint64.
        small: (N, 8, 8, 3) uint8, to confirm that colours agree too.
        bits: how many bits of the hashes may differ.
        colour: how much the small copies may differ on average.
    """
    group = np.arange(len(hashes))
    pixels = small.reshape(len(small), -1).astype(np.int16)
    for first, second in _candidates(hashes.astype(np.uint64), pixels.mean(axis=1), bits):
        for start in range(0, len(first), 1 << 14):
            a, b = first[start : start + (1 << 14)], second[start : start + (1 << 14)]
            near = np.abs(pixels[a] - pixels[b]).mean(axis=1) <= colour
            for i, j in zip(a[near].tolist(), b[near].tolist(), strict=True):
                _join(group, i, j)
    roots = np.array([_root(group, i) for i in range(len(group))], dtype=np.int64)
    order = np.argsort(roots, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    return [part for part in parts if len(part) > 1]


def _candidates(hashes: np.ndarray, brightness: np.ndarray, bits: int) -> Iterator[Pairs]:
    """Pairs of pictures to compare: those with equal hashes, and those with close ones."""
    order = np.lexsort((brightness, hashes))
    ranked = hashes[order]
    for step in range(1, min(_NEXT, len(order) - 1) + 1):
        same = ranked[step:] == ranked[:-step]
        yield order[:-step][same], order[step:][same]
    unique, starts, counts = np.unique(ranked, return_index=True, return_counts=True)
    for first, second in _close(unique, bits):
        for i in range(_OF_EACH):
            for j in range(_OF_EACH):
                both = (counts[first] > i) & (counts[second] > j)
                if both.any():
                    yield order[starts[first[both]] + i], order[starts[second[both]] + j]


def _close(hashes: np.ndarray, bits: int) -> Iterator[Pairs]:
    """Pairs of different hashes that differ in at most `bits`; some come several times.

    They agree in one of `bits + 1` parts, so only hashes with an equal part are compared.
    """
    borders = np.linspace(0, BITS, bits + 2).astype(int)
    for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(part, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(part[order])) + 1, [len(order)]])
        for start, end in _blocks(starts):
            yield from _compared(hashes, order[start:end], bits)


def _blocks(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of equal parts, small ones gathered so that one comparison does for many."""
    begin = 0
    for at in range(1, len(starts)):
        if at + 1 == len(starts) or starts[at + 1] - starts[begin] > _BLOCK:
            yield int(starts[begin]), int(starts[at])
            begin = at


def _compared(hashes: np.ndarray, rows: np.ndarray, bits: int) -> Iterator[Pairs]:
    """Pairs among `rows` whose hashes are close, a block of rows at a time."""
    step = max(1, _AT_ONCE // max(1, len(rows)))
    for start in range(0, len(rows), step):
        near = _popcount(hashes[rows[start : start + step], None] ^ hashes[rows[start:]][None, :]) <= bits
        i, j = np.nonzero(near)
        later = j > i
        if later.any():
            yield rows[start + i[later]], rows[start + j[later]]


def _popcount(values: np.ndarray) -> np.ndarray:
    count = getattr(np, "bitwise_count", None)  # numpy 2
    if count is not None:
        return count(values)
    return _ONES[values.view(np.uint16)].reshape(*values.shape, 4).sum(axis=-1)


def _root(group: np.ndarray, number: int) -> int:
    while group[number] != number:
        group[number] = group[group[number]]
        number = int(group[number])
    return number


def _join(group: np.ndarray, first: int, second: int) -> None:
    a, b = _root(group, first), _root(group, second)
    group[max(a, b)] = min(a, b)


_COSINES = np.cos(np.pi / 32 * (np.arange(32)[None, :] + 0.5) * np.arange(8)[:, None])  # (8, 32)
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)
