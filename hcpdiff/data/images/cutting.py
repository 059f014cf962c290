"""Cutting an image to its size, and its mask and condition images with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hcpdiff.data.images.augment import Pipeline
from hcpdiff.data.sources.base import Record
from hcpdiff.types import SizeInfo

_WASTE = 4  # the whole image is scaled, rather than what the crop keeps, if it has at most this many times its pixels


@dataclass
class Cut:
    """One example at its target size, still 8-bit."""

    size: SizeInfo
    image: np.ndarray  # (H, W, 3) uint8; (H, W, 0) of a source without images
    loss_mask: np.ndarray | None = None  # (H, W) float32
    inputs: dict[str, np.ndarray] = field(default_factory=dict)  # (H, W, 3) uint8


def scaled_size(original: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image after it was scaled to just cover the target."""
    return SizeInfo(original, (0, 0), target).scaled


def place(
    original: tuple[int, int],
    target: tuple[int, int],
    position: tuple[float, float] = (0.5, 0.5),
    *,
    resize: bool = True,
) -> SizeInfo:
    """Scale to cover the target, then crop.

    Args:
        original: (height, width) of the image.
        target: (height, width) that the model sees.
        position: of the crop, (down, right): 0 is top or left, 1 is bottom or right, 0.5 the middle.
        resize: False: no scaling; where the image is smaller than the target, it is padded below and to the right.
    """
    scaled = scaled_size(original, target) if resize else original
    spare = (max(0, scaled[0] - target[0]), max(0, scaled[1] - target[1]))
    crop = (min(spare[0], int(position[0] * (spare[0] + 1))), min(spare[1], int(position[1] * (spare[1] + 1))))
    return SizeInfo(original=original, crop=crop, target=target, scaled=scaled)


def cut(
    record: Record, size: SizeInfo, *, flip: bool = False, transforms: Pipeline | None = None, seed: int = 0
) -> Cut:
    """Scale, crop, mirror and pad the image, and all that belongs to it, by the same geometry.

    Scaling down is by Lanczos, up by bicubic; masks by area. The user's own transforms run before the crop if they
    move pixels, else after it; `seed` is theirs. Padding comes last: it is black, and its loss mask is 0.

    Raises:
        ValueError: a condition image or mask has another shape than the image; or the transforms do what they may not.
    """
    if record.image is None:
        return Cut(size, np.empty((*size.target, 0), dtype=np.uint8))
    pictures = {"image": record.image, **record.inputs}
    if record.loss_mask is not None:
        pictures["loss_mask"] = Image.fromarray(record.loss_mask.astype(np.float32))
    for name in pictures.keys() - {"image"}:
        _check_shape(pictures[name], size, "loss mask" if name == "loss_mask" else name)
    shown = _shown(size)
    if transforms is None or not transforms.before:
        arrays = {name: _resample(picture, size.scaled, shown) for name, picture in pictures.items()}
    else:
        arrays = {name: _resample(picture, size.scaled, (0, 0, *size.scaled)) for name, picture in pictures.items()}
        arrays = transforms.run_before(arrays, seed)
        top, left, height, width = shown
        arrays = {name: array[top : top + height, left : left + width] for name, array in arrays.items()}
    if flip:
        arrays = {name: array[:, ::-1] for name, array in arrays.items()}
    if transforms is not None:
        arrays = transforms.run_after(arrays, seed)
    if shown[2:] != size.target:
        arrays.setdefault("loss_mask", np.ones(shown[2:], dtype=np.float32))
        arrays = {name: _padded(array, size.target) for name, array in arrays.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return Cut(size, arrays["image"], arrays.get("loss_mask"), {name: arrays[name] for name in record.inputs})


def image_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return _planes(array).mul_(2).sub_(255).div_(255)


def unit_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1]."""
    return _planes(array).div_(255)


def _planes(array: np.ndarray) -> Tensor:
    """(H, W, C) to (C, H, W) float32. Turned while still of 8 bits, which is faster."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).contiguous().to(torch.float32)


def _shown(size: SizeInfo) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the scaled image's part that the model sees."""
    return (*size.crop, min(size.target[0], size.scaled[0]), min(size.target[1], size.scaled[1]))


def _resample(picture: Image.Image, scaled: tuple[int, int], part: tuple[int, int, int, int]) -> np.ndarray:
    """A part (top, left, height, width) of the picture scaled to `scaled`."""
    top, left, height, width = part
    if (picture.height, picture.width) == scaled:
        return np.array(picture.crop((left, top, left + width, top + height)))
    tall, wide = picture.height / scaled[0], picture.width / scaled[1]  # its pixels per scaled pixel
    shrinks = min(tall, wide) >= 1
    if picture.mode == "F":  # weights, which must not overshoot
        method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    elif _torch_has_lanczos() and scaled[0] * scaled[1] <= _WASTE * height * width:
        whole = _interpolate(picture, scaled, "lanczos" if shrinks else "bicubic")
        return np.ascontiguousarray(whole[top : top + height, left : left + width])
    else:
        method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    right, bottom = min((left + width) * wide, picture.width), min((top + height) * tall, picture.height)
    return np.array(picture.resize((width, height), method, box=(left * wide, top * tall, right, bottom)))


def _interpolate(picture: Image.Image, size: tuple[int, int], mode: str) -> np.ndarray:
    """What Pillow's `resize` gives but for rounding, about 6 times as fast."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size=size, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()


@cache
def _torch_has_lanczos() -> bool:
    """Whether this torch is new enough."""
    try:
        F.interpolate(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), size=(2, 2), mode="lanczos", antialias=True)
    except (NotImplementedError, ValueError):
        return False
    return True


def _padded(array: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """With zeros below and to the right."""
    result = np.zeros((*target, *array.shape[2:]), dtype=array.dtype)
    result[: array.shape[0], : array.shape[1]] = array
    return result


def _check_shape(picture: Image.Image, size: SizeInfo, what: str) -> None:
    """One picture may have another resolution than the image, not another aspect ratio (2 % is rounding)."""
    height, width = size.original
    if abs(picture.width * height / (picture.height * width) - 1) > 0.02:
        raise ValueError(
            f"the {what} is {picture.height} x {picture.width}, which is not the shape of the image, {height} x {width}"
        )
