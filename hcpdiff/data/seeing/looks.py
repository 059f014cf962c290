"""One look at each image: a thumbnail, a small copy to find duplicates by, and how sharp it is."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hcpdiff.data.scan import BadFile, attempt
from hcpdiff.data.seeing.similar import SMALL, perceptual_hash

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

THUMBNAIL = 240  # pixels of the longer side
LONGEST = 1000  # sharpness is measured on an image of at most so many pixels a side
KEPT = 2000  # thumbnails that are kept; more are made again when they are shown
QUALITY = 72  # of thumbnails as JPEG
# The variance of the Laplacian that rounding to 8 bits twice makes: its squared weights, 20, times 1 / 12, twice.
ROUNDING = 20 / 6
FEATURELESS = 20.0  # a variance of the Laplacian, at a quarter of the size, below which there is nothing to see


@dataclass(frozen=True)
class Look:
    """What is remembered of one image."""

    item: int
    hash: int  # 64 bits, see `perceptual_hash`
    small: np.ndarray  # (8, 8, 3) uint8
    sharpness: float | None  # see `sharpness`; None: the image has no detail to measure it by
    thumbnail: bytes | None  # a JPEG


def look_over(
    dataset: Dataset, items: Sequence[int], progress: Callable[[int, int], None] | None = None
) -> tuple[list[Look], list[BadFile]]:
    """Decode each of these images once, at about the size that it is trained at; those that are broken are listed.

    Args:
        items: numbers of images.
        progress: told (done, total).
    """
    looks: list[Look] = []
    bad: list[BadFile] = []
    keep = len(items) <= KEPT

    def look(item: int) -> tuple[Look | None, list[BadFile]]:
        wrong: list[BadFile] = []
        found = attempt(lambda: _look(dataset, item, keep), dataset.samples.items.key(item), wrong)
        return found, wrong

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (found, wrong) in enumerate(pool.map(look, items), start=1):
            looks += [] if found is None else [found]
            bad += wrong
            if progress is not None:
                progress(done, len(items))
    return looks, bad


def thumbnails(dataset: Dataset, looks: Sequence[Look], items: Iterable[int]) -> dict[int, bytes]:
    """JPEGs of these images, by their numbers; of images that cannot be read there is none."""
    found = {look.item: look.thumbnail for look in looks if look.thumbnail is not None}
    wanted = dict.fromkeys(items)
    missing = [item for item in wanted if item not in found]
    for item in missing:
        image = attempt(lambda item=item: _image(dataset, item, THUMBNAIL), dataset.samples.items.key(item), [])
        if image is not None:
            found[item] = _jpeg(image)
    return {item: found[item] for item in wanted if item in found}


def sharpness(image: Image.Image) -> float | None:
    """The variance of the Laplacian of an image, as a share of that at a quarter of its size.

    A photograph looks alike at all sizes, so the share of a sharp one is near 1 whatever it shows and however strong
    its contrast; line drawings have 0.2. What is blurred has detail only when it is made smaller: a blur with a radius
    of two pixels gives less than 0.03, and so does enlarging four times.

    Returns:
        None for an image below 32 pixels a side, or without any detail.
    """
    if min(image.size) < 32:
        return None
    grey = image.convert("L")
    small = grey.resize((grey.width // 4, grey.height // 4), Image.Resampling.BOX)
    coarse = _laplacian_variance(small)
    if coarse < FEATURELESS:
        return None
    return max(0.0, _laplacian_variance(grey) - ROUNDING) / coarse


def _look(dataset: Dataset, item: int, keep: bool) -> Look | None:
    image = _image(dataset, item, LONGEST)
    if image is None:
        return None
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small = image.resize((SMALL, SMALL), Image.Resampling.BOX)
    grey = image.convert("L").resize((32, 32), Image.Resampling.BOX)
    return Look(
        item=item,
        hash=perceptual_hash(np.asarray(grey)),
        small=np.array(small),
        sharpness=sharpness(_at_training_size(dataset, item, image)),
        thumbnail=_jpeg(image) if keep else None,
    )


def _image(dataset: Dataset, item: int, longest: int) -> Image.Image | None:
    """The whole image; None if the source has none. A JPEG is decoded at a part of its size where that is enough."""
    height, width = dataset.samples.items.sizes[item].tolist()
    scale = min(1.0, longest / max(height, width, 1))
    return dataset.samples.record(item, (max(1, round(height * scale)), max(1, round(width * scale)))).image


def _at_training_size(dataset: Dataset, item: int, image: Image.Image) -> Image.Image:
    size = dataset.samples.variant_view(item, 0).size
    height, width = size.original
    scale = max(size.target[0] / height, size.target[1] / width)
    scale = min(scale, LONGEST / max(height, width))
    wanted = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.LANCZOS if wanted[0] <= image.width else Image.Resampling.BICUBIC
    return image if wanted == image.size else image.resize(wanted, method, reducing_gap=3.0)


def _jpeg(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def _laplacian_variance(grey: Image.Image) -> float:
    values = np.asarray(grey, dtype=np.float32)
    middle = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * middle).var())
