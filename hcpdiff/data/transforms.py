"""Cutting an image to its size, and its mask and condition images with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.data.sources.base import Record
from hcpdiff.types import SizeInfo

Augment = Callable[..., dict[str, Any]]  # called as f(image=..., loss_mask=..., control_image=...), arrays (h, w[, 3])


@dataclass
class Cut:
    """One example at its target size, still 8-bit."""

    size: SizeInfo
    image: np.ndarray  # (H, W, 3) uint8
    loss_mask: np.ndarray | None = None  # (H, W) float32
    inputs: dict[str, np.ndarray] = field(default_factory=dict)  # (H, W, 3) uint8


def scaled_size(original: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image after it was scaled to just cover the target."""
    height, width = original
    scale = max(target[0] / height, target[1] / width)
    return max(target[0], round(height * scale)), max(target[1], round(width * scale))


def place(original: tuple[int, int], target: tuple[int, int], position: tuple[float, float] = (0.5, 0.5)) -> SizeInfo:
    """Scale to cover the target, then crop at `position`: 0 is top or left, 1 is bottom or right, 0.5 the middle."""
    height, width = scaled_size(original, target)
    spare = (height - target[0], width - target[1])
    crop = (min(spare[0], int(position[0] * (spare[0] + 1))), min(spare[1], int(position[1] * (spare[1] + 1))))
    return SizeInfo(original=original, crop=crop, target=target)


def cut(record: Record, size: SizeInfo, *, flip: bool = False) -> Cut:
    """Scale, crop and mirror the image, and all that belongs to it, by the same geometry.

    Scaling down is by Lanczos, up by bicubic; masks by area. Only what the crop keeps is computed.

    Raises:
        ValueError: a condition image or mask has another shape than the image.
    """
    image = _resample(record.image, size, flip)
    mask = None
    if record.loss_mask is not None:
        grey = Image.fromarray(record.loss_mask.astype(np.float32))
        _check_shape(grey, size, "loss mask")
        mask = _resample(grey, size, flip, Image.Resampling.BOX)
    inputs = {}
    for name, picture in record.inputs.items():
        _check_shape(picture, size, name)
        inputs[name] = _resample(picture, size, flip)
    return Cut(size, image, mask, inputs)


def augment(example: Cut, transforms: Augment, seed: int) -> Cut:
    """The user's own pipeline on image, mask and condition images together.

    An albumentations `Compose` changes colours of the image only, and moves masks and condition images along with it.
    A pipeline with `set_random_seed` gets a seed for each example; any other should not be random.

    Raises:
        ValueError: it changes the size.
    """
    arrays = {"image": example.image, **example.inputs}
    if example.loss_mask is not None:
        arrays["loss_mask"] = example.loss_mask
    known = getattr(transforms, "additional_targets", None)
    if known is not None:
        extra = {name: "mask" for name in arrays if name != "image" and name not in known}
        if extra:
            transforms.add_targets(extra)  # type: ignore[attr-defined]
    if hasattr(transforms, "set_random_seed"):
        transforms.set_random_seed(seed % 2**32)  # type: ignore[attr-defined]
    arrays = {name: np.asarray(array) for name, array in transforms(**arrays).items()}
    for name, array in arrays.items():
        if array.shape[:2] != example.size.target:
            raise ValueError(
                f"transforms: {name} became {array.shape[0]} x {array.shape[1]}, but the bucket's size is "
                f"{example.size.target[0]} x {example.size.target[1]}; leave out what resizes or crops"
            )
    return Cut(example.size, arrays["image"], arrays.get("loss_mask"), {name: arrays[name] for name in example.inputs})


def image_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return unit_tensor(array).mul_(2).sub_(1)


def unit_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _resample(
    picture: Image.Image, size: SizeInfo, flip: bool, down: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    """The crop of a picture of any resolution that shows the same as the original."""
    scaled = scaled_size(size.original, size.target)
    tall, wide = picture.height / scaled[0], picture.width / scaled[1]  # its pixels per scaled pixel
    top, left = size.crop[0] * tall, size.crop[1] * wide
    box = (
        left,
        top,
        min(left + size.target[1] * wide, picture.width),
        min(top + size.target[0] * tall, picture.height),
    )
    method = down if min(tall, wide) >= 1 else Image.Resampling.BICUBIC
    if method != Image.Resampling.LANCZOS and picture.mode == "F":
        method = down if min(tall, wide) >= 1 else Image.Resampling.BILINEAR  # weights must not overshoot
    result = picture.resize((size.target[1], size.target[0]), method, box=box, reducing_gap=3.0)
    if flip:
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(result)  # a copy, as Pillow's own buffer is read-only


def _check_shape(picture: Image.Image, size: SizeInfo, what: str) -> None:
    """One picture may have another resolution than the image, not another aspect ratio (2 % is rounding)."""
    height, width = size.original
    if abs(picture.width * height / (picture.height * width) - 1) > 0.02:
        raise ValueError(
            f"the {what} is {picture.height} x {picture.width}, which is not the shape of the image, {height} x {width}"
        )
