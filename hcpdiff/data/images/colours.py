"""Pixels of any mode, depth and colour profile as 8-bit sRGB, and their opacity."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

_CHANNELS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space -> mode of the pixels it describes
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags


def to_rgb(image: Image.Image, background: tuple[int, int, int], *, profiled: bool = True) -> Image.Image:
    """A decoded image of any mode in sRGB, its transparency laid on `background`; itself if it is that already.

    `profiled` False leaves an embedded colour profile aside, for images whose numbers are data and no colours.
    """
    profile = image.info.get("icc_profile") if profiled else None
    if _deep(image):
        colours = _in_srgb(_to_8_bits(image), profile)
    elif image.mode == "LAB":
        colours = _apply(image, _lab_to_srgb())
    else:
        colours = _in_srgb(_without_alpha(image), profile)
    alpha = alpha_of(image)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", image.size, background), alpha)


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The opacity of a decoded image as "L", of its size; None if it has none."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.getchannel("A")
    key = image.info.get("transparency")
    if key is None:
        return None
    if _deep(image):
        return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    if image.mode in ("1", "L", "P", "RGB"):
        return _keyed(image, key).convert("RGBA").getchannel("A")
    return None


def _keyed(image: Image.Image, key: object) -> Image.Image:
    """With a transparent colour of 8 bits; that of a 16-bit PNG has 16, although Pillow reduced its pixels."""
    if isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours alone: "L", "RGB" or "CMYK"."""
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    if image.mode in ("LA", "1"):
        return image.convert("L")
    plain = image.copy()
    plain.info.pop("transparency", None)  # else Pillow mixes it in
    return plain.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An "L", "RGB" or "CMYK" image in sRGB by its colour profile, if it has a usable one."""
    if profile:
        wanted = _described(profile)
        if wanted == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if wanted == image.mode:
            change = _to_srgb(profile, image.mode)
            if change is not None:
                return _apply(image, change)
    return image.convert("RGB") if image.mode != "RGB" else image


def _apply(image: Image.Image, change: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, change)
    assert result is not None
    result.info.pop("icc_profile", None)
    return result


@lru_cache(maxsize=32)
def _described(profile: bytes) -> str | None:
    """The mode of the pixels that a profile describes; None if it is broken or of no use here."""
    try:
        described: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        space = described.xcolor_space.strip()
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        _ignored(error)
        return None
    return _CHANNELS.get(space)


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if that changes nothing that can be seen, or the profile is broken."""
    probe = _probe(mode)
    try:
        change = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        changed = np.asarray(_apply(probe, change), dtype=int)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        _ignored(error)
        return None
    return None if np.abs(changed - np.asarray(probe.convert("RGB"), dtype=int)).max() <= 2 else change


def _ignored(error: Exception) -> None:
    logging.getLogger("hcpdiff.data").warning("a broken colour profile is taken for sRGB: %s", error)


def _probe(mode: str) -> Image.Image:
    """An image with colours from all over the range."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1)
    return Image.frombytes(mode, (grid[..., 0].size, 1), grid.tobytes())


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"),
        ImageCms.createProfile("sRGB"),
        "LAB",
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )


def _deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """12-bit, 16-bit, 32-bit and float grey as "L". Pillow's own conversion clips instead of scaling."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    grey = Image.fromarray((values * (255 / _white(image, values))).round().clip(0, 255).astype(np.uint8))
    tags = getattr(image, "tag_v2", {})
    return ImageOps.invert(grey) if image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == 0 else grey


def _white(image: Image.Image, values: np.ndarray) -> float:
    """The value of white."""
    largest = float(values.max(initial=0.0))
    if image.mode == "F":  # no format says it: 0 to 1 by habit, else as wide as needed
        return next((white for white in (1.0, 255.0, 65535.0) if largest <= white), largest)
    tags = getattr(image, "tag_v2", {})
    if _BITS in tags:
        signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
        return 2.0 ** (tags[_BITS][0] - signed) - 1
    return 65535.0 if image.mode != "I" or image.format == "PPM" or largest > 255 else 255.0
