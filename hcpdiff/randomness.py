"""Every random choice of a run is a pure function of (seed, purpose, index).

So a resumed run repeats them exactly without any saved generator state, and no choice depends on how many others were
made before it.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, *index: int | str) -> int:
    """A 63-bit seed that is unrelated for any two different arguments (BLAKE2b)."""
    digest = hashlib.blake2b(repr((int(seed), purpose, index)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *index: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for this choice, e.g. `generator(seed, "noise", step)`."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, purpose, *index))


def python_random(seed: int, purpose: str, *index: int | str) -> random.Random:
    """The same for choices made in plain Python, e.g. the shuffle of tags."""
    return random.Random(derive(seed, purpose, *index))
