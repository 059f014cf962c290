"""Normal noise, drawn fast: the same for the same seed, on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

_BITS = 16


def normals(seeds: Sequence[int], count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Independent standard normal numbers, (len(seeds), count), a row per seed of up to 64 bits.

    Each is the normal quantile of 16 random bits: 65,536 different values up to 4.3, of mean 0 and variance 1 to four
    digits. That is finer than what bfloat16 tells apart, and three times as fast as exact numbers.
    """
    words = random_words(seeds, -(-count * _BITS // 64))
    index = torch.from_numpy(words.view("<u2")[:, :count].astype(np.int32))
    return torch.index_select(_quantiles(dtype), 0, index.view(-1)).view(len(seeds), count)


def random_words(seeds: Sequence[int], count: int) -> np.ndarray:
    """Random bits, (len(seeds), count) uint64: SplitMix64 (Steele, Lea, Flood 2014), of which a row is any part."""
    state = np.array(seeds, dtype=np.uint64)[:, None] + _steps(count)
    shifted = np.empty_like(state)
    for shift, factor in _MIXING:
        np.right_shift(state, shift, out=shifted)
        state ^= shifted
        state *= factor
    np.right_shift(state, np.uint64(31), out=shifted)
    state ^= shifted
    return state


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIXING = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]


@lru_cache(8)
def _steps(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


@cache
def _quantiles(dtype: torch.dtype) -> Tensor:
    """The normal quantile in the middle of each of 65,536 equal parts of probability."""
    middles = (torch.arange(2**_BITS, dtype=torch.float64) + 0.5) / 2**_BITS
    return torch.special.ndtri(middles).to(dtype)
