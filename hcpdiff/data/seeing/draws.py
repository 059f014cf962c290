"""How samples look when they are drawn: their crops and prompts in the first epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from hcpdiff.data.images.cutting import scaled_size
from hcpdiff.data.images.views import View
from hcpdiff.data.scan import attempt
from hcpdiff.types import Prompt, SizeInfo

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset


@dataclass(frozen=True)
class Draw:
    """One showing of an image."""

    epoch: int
    view: View
    prompt: Prompt | None  # None: its caption cannot be read


def draws(dataset: Dataset, item: int, count: int) -> list[Draw]:
    """The first showings of an image: all of epoch 0, then of epoch 1, and so on."""
    samples = dataset.samples
    numbers = np.flatnonzero(samples.item_of == item).tolist()
    pairs = ((epoch, number) for epoch in range(count) for number in numbers)
    return [
        Draw(epoch, samples.view(epoch, number)[0], attempt(lambda e=epoch, n=number: samples.prompt(e, n), "", []))
        for epoch, number in islice(pairs, count)
    ]


def frames(shown: Sequence[Draw]) -> list[tuple[tuple[float, float, float, float], list[int]]]:
    """The different crops of some draws: (top, left, height, width) as shares of the image, and the draws of each."""
    found: dict[tuple[float, float, float, float], list[int]] = {}
    for number, draw in enumerate(shown):
        found.setdefault(frame(draw.view.size), []).append(number)
    return list(found.items())


def frame(size: SizeInfo) -> tuple[float, float, float, float]:
    """(top, left, height, width) of a crop, as shares of the whole image; what is padded is left out."""
    height, width = getattr(size, "scaled", None) or scaled_size(size.original, size.target)
    top, left = min(size.crop[0], height), min(size.crop[1], width)
    bottom, right = min(height, size.crop[0] + size.target[0]), min(width, size.crop[1] + size.target[1])
    return top / height, left / width, (bottom - top) / height, (right - left) / width
