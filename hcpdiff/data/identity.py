"""What tells one dataset from another: names, sizes and captions of its images."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hcpdiff.data.seeing.summary import CAPTIONS_READ, spread

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset


def identity(dataset: Dataset) -> str:
    """A hash of a prepared dataset's images, without reading a pixel.

    Names, sizes and repeats of all images count, and captions as they stand in the files; of more than
    `CAPTIONS_READ` images, those of as many.
    """
    items = dataset.samples.items
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\n".join(items.key(item) for item in range(len(items))).encode())
    digest.update(items.sizes.tobytes() + items.repeats.tobytes())
    for item in spread(len(items), CAPTIONS_READ).tolist():
        digest.update(repr(dataset.samples.captions_or_none(item, [])).encode())
    return digest.hexdigest()
