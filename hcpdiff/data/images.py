"""Reading one image file: any mode and format that Pillow knows becomes upright 8-bit RGB (or grey)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

# Those that this Pillow cannot read (.heic, .jxl) too: so they are listed as unreadable, not passed over.
_NAMES = "avif bmp gif heic heif ico jfif jp2 jpe jpeg jpg jxl pbm pgm png ppm tga tif tiff webp"
SUFFIXES = frozenset("." + name for name in _NAMES.split())

_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the file's header."""
    with Image.open(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def read_rgb(
    path: Path, *, background: tuple[int, int, int] = (255, 255, 255), at_least: tuple[int, int] | None = None
) -> Image.Image:
    """The upright image in RGB, transparency laid on `background`; of an animation, the first frame.

    Args:
        path: the file.
        background: RGB, 0 to 255.
        at_least: (height, width) that is needed; a JPEG may come out smaller than it is, but never below this.

    Raises:
        OSError: and other exceptions of Pillow's decoders, if the file is broken.
    """
    with Image.open(path) as image:
        turn = _orientation(image)
        if at_least is not None:
            height, width = reversed(at_least) if turn >= 5 else at_least
            image.draft(None, (width, height))
        return _upright(_to_rgb(image, background), turn)


def read_grey(path: Path) -> Image.Image:
    """The upright image in 8-bit grey ("L"); colours by their luminance, transparency on black."""
    with Image.open(path) as image:
        turn = _orientation(image)
        return _upright(_to_rgb(image, (0, 0, 0)).convert("L"), turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Pillow's PNG reader would decode the picture for it; the base class does not."""
    if image.format == "TIFF":  # Pillow turns these upright by itself
        return 1
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")  # a copy even of an RGB image, so that the file can be closed


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits. Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = values * 255 if values.max(initial=0.0) <= 1 else values
    elif image.mode != "I" or values.max(initial=0.0) > 255:
        values = values / 257  # 65535 -> 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
