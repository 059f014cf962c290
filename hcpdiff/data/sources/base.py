"""What a source of images and captions is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image


@dataclass
class Record:
    """One example as it was loaded: upright, uncut, 8-bit."""

    image: Image.Image | None  # RGB; None only from a source with `has_images = False`
    loss_mask: np.ndarray | None = None  # (h, w) float32, weight of the loss; any resolution of the same picture
    inputs: dict[str, Image.Image] = field(default_factory=dict)  # RGB, for plugins; any resolution, the same picture


class Stamps(NamedTuple):
    """What tells, without opening a file, whether it is still the one of an earlier run."""

    names: Sequence[str]  # absolute paths, one per image of the source
    mtimes: np.ndarray  # (N,) int64, nanoseconds
    sizes: np.ndarray  # (N,) int64, bytes; -1: unknown, so the file is looked at again


@runtime_checkable
class Source(Protocol):
    """Any class with these methods is a source; write your own and name it by `_target_`.

    More members are optional:

    - `repeat`: how often an epoch shows an image, a number or one per image. 0.5 shows it in every second epoch.
    - `check()`: raises for what is wrong with the whole source, before anything is read.
    - `sizes() -> (N, 2) array | None`: (height, width) of all images, where they are known without opening files;
      rows of 0 are unknown and asked for by `size`.
    - `stamps() -> Stamps | None`: of the image files. With them the next run need not read the headers of unchanged
      files again; `size` must then bear being called from several threads.
    - `fingerprint(index) -> str`: identifies the content of an example for the caches without decoding it. Without it,
      the pixels are hashed.
    - `use_index(index)`: takes the `FileIndex` of this run, which knows the hashes of unchanged files.
    - `caption_weights(index) -> Sequence[float] | None`: how often each caption is drawn, relative to the others.
    - `has_images = False`: it has prompts only; `size` then says what is to be generated, and `Record.image` is None.
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
