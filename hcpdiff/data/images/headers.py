"""The size of an image from the first bytes of its file, several times as fast as Pillow opens it.

Whatever is unusual is left to Pillow: every parser here gives None then, so the answer is always Pillow's.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from PIL import Image

from hcpdiff.data.images.reading import read_size

_BLOCK = 4096  # bytes of a read; the header of most files fits
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_ORIENTATION = 0x0112  # the EXIF tag
_EXIF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a value, by its type
_XMP_ORIENTATION = b"tiff:Orientation"

_PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
_PNG_CHUNK = 1 << 17  # longer chunks of pixels are left to Pillow, if there are several

_jpeg_segment = struct.Struct(">BBHBHHB").unpack  # 255, marker, length; of a frame: bits, height, width, components
_png_header = struct.Struct(">I4sIIBBBBBI").unpack
_png_chunk = struct.Struct(">I4s").unpack
_PNG_MODES = frozenset({(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)}) | frozenset(
    {(1, 3), (2, 3), (4, 3), (8, 3), (8, 4), (16, 4), (8, 6), (16, 6)}  # (bits, colour type)
)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image: what `images.read_size` gives.

    Raises:
        OSError: and other exceptions of Pillow, if the header is broken.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        size = _sniff(_Reader(descriptor))
    finally:
        os.close(descriptor)
    limit = Image.MAX_IMAGE_PIXELS
    if size is None or size[0] < 1 or size[1] < 1 or (limit is not None and size[0] * size[1] > limit):
        return read_size(Path(path))
    return size


class _Reader:
    """Bytes of a file by their place, read a block at a time."""

    __slots__ = ("block", "descriptor", "start")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.start = 0
        self.block = os.read(descriptor, _BLOCK)

    def at(self, place: int, count: int) -> bytes:
        """These bytes, or fewer at the end of the file."""
        begin = place - self.start
        if begin < 0 or begin + count > len(self.block):
            os.lseek(self.descriptor, place, os.SEEK_SET)
            self.block, self.start, begin = os.read(self.descriptor, max(count, _BLOCK)), place, 0
        return self.block[begin : begin + count]


def _sniff(file: _Reader) -> tuple[int, int] | None:
    start = file.block[:12]
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file)
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return _webp(file)
    if start.startswith((b"GIF87a", b"GIF89a")):
        return _gif(file)
    return _bmp(file) if start.startswith(b"BM") else None


def _jpeg(file: _Reader) -> tuple[int, int] | None:
    place, size, orientation, xmp = 2, None, 0, False
    exif = None
    while True:
        segment = file.at(place, 10)
        if len(segment) < 10:
            return None
        mark, kind, length, bits, height, width, components = _jpeg_segment(segment)
        if mark != 0xFF or not 0xC0 <= kind <= 0xFE or 0xD0 <= kind <= 0xD9 or length < 2:
            return None
        if kind == 0xDA:  # the picture itself
            break
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xCC):
            if size is not None or kind > 0xC2 or bits != 8 or components not in (1, 3, 4):
                return None
            size = height, width
        elif kind == 0xE1:
            content = file.at(place + 4, length - 2)
            if content.startswith(b"Exif\0\0"):
                if exif is not None:
                    return None
                exif = content
            elif content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = xmp or _XMP_ORIENTATION in content
        place += 2 + length
    if exif is not None:
        orientation = _orientation(exif)
    return _upright(size, orientation, xmp)


def _png(file: _Reader) -> tuple[int, int] | None:
    header = file.at(8, 25)
    if len(header) < 25:
        return None
    length, name, width, height, bits, colours, _, _, _, check = _png_header(header)
    if length != 13 or name != b"IHDR" or (bits, colours) not in _PNG_MODES or check != zlib.crc32(header[4:21]):
        return None
    place, orientation = 33, 0
    while True:
        chunk = file.at(place, 8)
        if len(chunk) < 8:
            return None
        length, name = _png_chunk(chunk)
        if name == b"IDAT":
            return _upright((height, width), orientation, False) if _ends_with_pixels(file, place, length) else None
        if name == b"eXIf":
            orientation = _orientation(file.at(place + 8, length))
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            if file.at(place + 8, min(length, 22)).startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")):
                return None
        elif name in (b"IEND", b"IHDR", b"fdAT") or not name.isalpha():
            return None
        place += 12 + length


def _ends_with_pixels(file: _Reader, place: int, length: int) -> bool:
    """Whether no chunk of a PNG file lies between its pixels and its end; some programs write EXIF there.

    Args:
        place: of the first chunk of pixels; the others are as long, the last is no longer.
        length: of the first.
    """
    end = os.fstat(file.descriptor).st_size - 12
    if place + 12 + length == end:  # a single chunk
        return file.at(end, 12) == _PNG_END
    begin = max(place, end - 12 - length)
    tail = file.at(begin, end + 12 - begin) if length <= _PNG_CHUNK else b""
    found = tail.rfind(b"IDAT")
    while found >= 4 and begin + found + 8 + int.from_bytes(tail[found - 4 : found], "big") != end:
        found = tail.rfind(b"IDAT", 0, found)
    return found >= 4 and tail.endswith(_PNG_END)


def _webp(file: _Reader) -> tuple[int, int] | None:
    header = file.at(0, 30)
    end = 8 + int.from_bytes(header[4:8], "little")
    if len(header) < 30 or end > os.fstat(file.descriptor).st_size:  # Pillow, too, refuses what is cut off
        return None
    kind = header[12:16]
    if kind == b"VP8 " and header[23:26] == b"\x9d\x01\x2a" and not header[20] & 1:  # 1: no key frame
        width, height = struct.unpack_from("<HH", header, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L" and header[20] == 0x2F:
        packed = int.from_bytes(header[21:25], "little")
        return (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    if kind != b"VP8X" or header[20] & 2:  # 2: an animation
        return None
    size = int.from_bytes(header[27:30], "little") + 1, int.from_bytes(header[24:27], "little") + 1
    orientation, xmp, place = 0, False, 30
    while header[20] & (4 | 8) and place + 8 <= end:  # 8: it has EXIF, 4: XMP
        name, length = struct.unpack("<4sI", file.at(place, 8))
        if name == b"EXIF":
            orientation = _orientation(file.at(place + 8, length))
        elif name == b"XMP ":
            xmp = _XMP_ORIENTATION in file.at(place + 8, length)
        place += 8 + length + (length & 1)
    return _upright(size, orientation, xmp)


def _gif(file: _Reader) -> tuple[int, int] | None:
    header = file.at(0, 13)
    if len(header) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", header, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while (mark := file.at(place, 1)) == b"!":  # an extension: its kind, then blocks that begin with their length
        place += 2
        while (length := file.at(place, 1)) not in (b"\0", b""):
            place += 1 + length[0]
        place += 1
    frame = file.at(place + 1, 9)
    if mark != b"," or len(frame) < 9:
        return None
    left, top, wide, high = struct.unpack_from("<HHHH", frame)
    return None if left + wide > width or top + high > height else (height, width)


def _bmp(file: _Reader) -> tuple[int, int] | None:
    header = file.at(0, 54)
    if len(header) < 54:
        return None
    length, width, height, _, bits, packing = struct.unpack_from("<IiiHHI", header, 14)
    plain = length in (40, 108, 124) and bits in (24, 32) and packing == 0
    return (abs(height), width) if plain and height > -(2**24) else None


def _orientation(exif: bytes) -> int | None:
    """1 to 8; 0: it says none; None: Pillow should look at it."""
    if exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return None
    begin = struct.unpack_from(order + "I", exif, 4)[0]
    if begin < 8 or begin + 2 > len(exif):
        return None
    end = begin + 2 + 12 * struct.unpack_from(order + "H", exif, begin)[0]
    if end > len(exif):
        return None
    found = 0
    for tag, kind, count, value in struct.iter_unpack(order + "HHII", exif[begin + 2 : end]):
        length = _EXIF_BYTES.get(kind, 1 << 32) * count
        if length > 4 and value + length > len(exif):  # Pillow reads no further
            return None
        if tag == _ORIENTATION:
            found = value >> 16 if order == ">" else value & 0xFFFF
            if found > 8 or (kind, count) != (3, 1):
                return None
    return found


def _upright(size: tuple[int, int] | None, orientation: int | None, xmp: bool) -> tuple[int, int] | None:
    if size is None or orientation is None or (xmp and not orientation):
        return None
    return (size[1], size[0]) if orientation >= 5 else size
