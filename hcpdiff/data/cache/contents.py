"""What identifies the content of the images of a dataset, whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from hcpdiff.data.samples import Samples
from hcpdiff.data.scan import BadFile, attempt
from hcpdiff.data.sources.base import Record


def contents(samples: Samples, bad: list[BadFile]) -> list[str | None]:
    """Of each item: by its source, or else of its pixels; None, and a line in `bad`, if it is broken."""
    items = samples.items
    return [attempt(lambda item=item: _content(samples, item), items.key(item), bad) for item in range(len(items))]


def _content(samples: Samples, item: int) -> str:
    source, local = samples.sources[samples.items.source[item]], int(samples.items.local[item])
    by_source: Callable[[int], str] | None = getattr(source, "fingerprint", None)
    return hash_pixels(source.load(local)) if by_source is None else by_source(local)


def hash_pixels(record: Record) -> str:
    """Of everything that a source loaded."""
    parts = {"image": record.image, "loss_mask": record.loss_mask, **record.inputs}
    digest = hashlib.blake2b(digest_size=16)
    for name, picture in parts.items():
        pixels = np.ascontiguousarray(picture if picture is not None else [])
        digest.update(repr((name, pixels.shape, pixels.dtype)).encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()
