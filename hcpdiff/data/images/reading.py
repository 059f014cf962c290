"""Reading one image file: any mode and format that Pillow knows becomes upright 8-bit sRGB (or grey, or alpha)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL import ExifTags, Image, UnidentifiedImageError

from hcpdiff.data.images.colours import alpha_of, to_rgb

ImageFile: TypeAlias = "str | Path | BinaryIO"  # a path, or an open file that can seek

# Those that this Pillow cannot read (.heic, .jxl) too: so they are listed as unreadable, not passed over.
_NAMES = "avif bmp gif heic heif ico jfif jp2 jpe jpeg jpg jxl pbm pgm png ppm tga tif tiff webp"
SUFFIXES = frozenset("." + name for name in _NAMES.split())

_PROGRAMS = ("EPS", "WMF")  # Pillow runs Ghostscript, or asks Windows, to draw these; a data file shall run nothing
_TRUE_HEADERS = frozenset(
    ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
)
_EXIF_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of texts that may hold an orientation
_SHARPNESS = 2  # a JPEG that is decoded smaller keeps this many times the pixels needed per side: then few can tell

_OF_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)  # the latter: a place in the file that cannot be

_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(OSError):
    """A file that is no whole image; the message begins with its name."""


def read_size(file: ImageFile) -> tuple[int, int]:
    """(height, width) of the upright image; from the file's header, for the formats whose header can be trusted.

    Raises:
        UnidentifiedImageError, UnreadableImageError: the file is no image, or it is broken; both are OSErrors.
    """
    with _opened(file) as image:
        if not _header_suffices(image):
            image.load()
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def read_rgb(
    file: ImageFile, *, background: tuple[int, int, int] = (255, 255, 255), at_least: tuple[int, int] | None = None
) -> Image.Image:
    """The upright image in sRGB, transparency laid on `background`; of an animation, the first frame.

    An embedded colour profile is applied; one that is broken, or meant for other channels, is taken for sRGB, which
    the log says once for each such profile.

    Args:
        file: a path or an open file. Its content decides the format, not its name.
        background: RGB, 0 to 255.
        at_least: (height, width) that is needed; a large JPEG may come out smaller than it is, never below twice this.

    Raises:
        UnidentifiedImageError, UnreadableImageError: the file is no image, or it is broken; both are OSErrors.
    """
    with _opened(file) as image:
        if at_least is not None and image.format in ("JPEG", "MPO"):
            height, width = reversed(at_least) if _orientation(image) >= 5 else at_least
            image.draft(None, (_SHARPNESS * width, _SHARPNESS * height))
        image.load()
        return _upright(to_rgb(image, background), _orientation(image))


def read_grey(file: ImageFile) -> Image.Image:
    """The upright image in 8-bit grey ("L"); colours by their luminance, transparency on black.

    The numbers are taken as they are, whatever colour profile is embedded: they are weights. Raises as `read_rgb`.
    """
    with _opened(file) as image:
        image.load()
        return _upright(to_rgb(image, (0, 0, 0), profiled=False).convert("L"), _orientation(image))


def read_alpha(file: ImageFile) -> Image.Image | None:
    """The upright opacity in 8-bit grey ("L"), 0 is transparent; None if the format or file has none.

    Raises as `read_rgb`.
    """
    with _opened(file) as image:
        image.load()
        alpha = alpha_of(image)
        return None if alpha is None else _upright(alpha, _orientation(image))


@contextmanager
def _opened(file: ImageFile) -> Iterator[Image.Image]:
    """The image, not decoded yet; whatever a decoder raises becomes an error that names the file."""
    name = _shown(file)
    try:
        with Image.open(file, formats=_formats()) as image:
            if not all(image.size):
                raise ValueError(f"it is {image.height} x {image.width}, which is no pixel at all")
            yield image
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"{name}: no image, or broken, or of a format that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImageError(
            f"{name}: it claims more than {limit / 1e6:.0f} megapixels, which may be an attack on the memory (a "
            "decompression bomb); scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # decoders of broken files raise nearly any
        if isinstance(error, OSError) and error.errno not in _OF_CONTENT:  # of the disk or of rights: leave it
            raise
        raise UnreadableImageError(f"{name}: {error or type(error).__name__}") from error


def _shown(file: ImageFile) -> str:
    """The name for a message of one line."""
    name = getattr(file, "name", "") if hasattr(file, "read") else file
    name = os.path.basename(str(name)) or "image"
    return name if name.isprintable() else ascii(name)


def _formats() -> list[str]:
    """All that this Pillow reads by itself, plug-ins that the user registered included."""
    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name not in _PROGRAMS]


def _header_suffices(image: Image.Image) -> bool:
    """Whether size and orientation are known before decoding."""
    if image.format == "PNG":
        return not _has_late_exif(image.fp)  # type: ignore[attr-defined]
    if image.format == "TIFF":  # its orientation tag is in the size already; one in XMP counts only on decoding
        return 700 not in image.tag_v2  # type: ignore[attr-defined]
    return image.format in _TRUE_HEADERS


def _has_late_exif(fp: BinaryIO) -> bool:
    """Whether a PNG file has metadata after its pixels; some programs write it there."""
    start, place, pixels, late = fp.tell(), 8, False, False
    while not late:
        fp.seek(place)
        chunk = fp.read(30)
        length, kind = struct.unpack_from(">I4s", chunk) if len(chunk) >= 8 else (0, b"IEND")
        if kind == b"IEND":
            break
        late = pixels and (kind == b"eXIf" or chunk[8:].startswith(_EXIF_TEXTS))
        pixels |= kind == b"IDAT"
        place += length + 12
    fp.seek(start)
    return late


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none that makes sense. A broken EXIF block breaks no image.

    Pillow's PNG reader would decode the picture for it; the base class does not.
    """
    if image.format == "TIFF":  # Pillow turns these upright by itself
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, OverflowError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
