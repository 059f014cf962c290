"""What a source of images and captions is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image


@dataclass
class Record:
    """One example as it was loaded: upright, uncut, 8-bit."""

    image: Image.Image  # RGB
    loss_mask: np.ndarray | None = None  # (h, w) float32, weight of the loss; any resolution of the same picture
    inputs: dict[str, Image.Image] = field(default_factory=dict)  # RGB, for plugins; any resolution, the same picture


@runtime_checkable
class Source(Protocol):
    """Any class with these methods is a source; write your own and name it by `_target_`.

    Two more members are optional: `repeat` (an int, or one int per image) says how often an epoch shows an image;
    `fingerprint(index) -> str` identifies the content of an example for the caches without decoding it (without it,
    the pixels are hashed).
    """

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def key(self, index: int) -> str:
        """A name that is unique within the source and stays the same from run to run, e.g. the relative path."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the upright image, without decoding it."""
        ...

    def captions(self, index: int) -> Sequence[str]:
        """The captions of the image, of which one is drawn each time; may be empty."""
        ...

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        """The decoded example. It may be scaled down, but not below `at_least` (height, width)."""
        ...
