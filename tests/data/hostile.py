"""Five hundred broken files, each a pure function of its number."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageCms

COUNT = 500
FORMATS = ("jpg", "progressive.jpg", "png", "deep.png", "palette.png", "gif", "webp", "alpha.webp", "tif", "lzw.tif")
FORMATS += ("bmp", "jp2", "avif", "ppm", "tga", "ico", "animated.gif", "cmyk.jpg")

Damage = Callable[[bytes, random.Random], bytes]


def image_of(number: int) -> tuple[str, bytes]:
    """(suffix, content) of a broken file."""
    rng = random.Random(number)
    kind = FORMATS[number % len(FORMATS)]
    damage = rng.choice(DAMAGES)
    return kind.rpartition(".")[2], damage(sound(kind, number % 5), rng)


@cache
def sound(kind: str, variant: int) -> bytes:
    """A good file. Every second one has EXIF, every third a colour profile."""
    pixels = np.random.default_rng(variant).integers(0, 256, (9 + 7 * variant, 40 - 5 * variant, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    options: dict[str, object] = {}
    if variant % 2:
        exif = Image.Exif()
        exif[0x0112] = 1 + variant
        options["exif"] = exif
    if variant % 3 == 0:
        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    name, _, suffix = kind.rpartition(".")
    if name == "deep":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif name == "palette":
        image = image.convert("RGB").quantize(16)
        options["transparency"] = variant
    elif name == "cmyk":
        image = image.convert("RGB").convert("CMYK")
        options.pop("icc_profile", None)
    elif name not in ("alpha",) and suffix not in ("png", "tif", "ico"):
        image = image.convert("RGB")
    options |= {
        "progressive": {"progressive": True},
        "lzw": {"compression": "tiff_lzw"},
        "alpha": {"lossless": True},
        "animated": {"save_all": True, "append_images": [image.rotate(90, expand=True), image]},
    }.get(name, {})
    file = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    image.save(file, formats.get(suffix, suffix.upper()), **options)
    return file.getvalue()


def cut_off(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def flip_header(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(3):
        changed[rng.randrange(min(64, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def wrong_magic(data: bytes, rng: random.Random) -> bytes:
    magic = (
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"BM",
        b"%!PS-Adobe-3.0",
    )
    return rng.choice(magic) + data[8:]


def nothing(data: bytes, rng: random.Random) -> bytes:
    return b""


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 400))


def hole(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(rng.randrange(1, 100)) + data[start + rng.randrange(100) :]


def twice(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data


def trailing(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 200))


def huge(data: bytes, rng: random.Random) -> bytes:
    """Claims more pixels than it has, up to a bomb."""
    width, height = rng.choice(((65535, 65535), (2**31 - 1, 1), (0, 0), (41, 300), (2**24, 2**24)))
    changed = bytearray(data)
    if data.startswith(b"\x89PNG"):
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif data.startswith(b"GIF"):
        changed[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif data.startswith(b"BM"):
        changed[18:26] = struct.pack("<ii", width, height)
    elif data.startswith(b"\xff\xd8"):
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        changed[frame + 5 : frame + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif data.startswith(b"P6"):
        return f"P6\n{width} {height}\n255\n".encode() + data[15:]
    else:
        return flip_header(data, rng)
    return bytes(changed)


def bad_exif(data: bytes, rng: random.Random) -> bytes:
    """Random bytes where the EXIF block is, or anywhere."""
    start = max(data.find(b"Exif"), data.find(b"eXIf"), data.find(b"EXIF"), 0) + 6
    return data[:start] + rng.randbytes(30) + data[start + 30 :]


def bad_profile(data: bytes, rng: random.Random) -> bytes:
    start = max(data.find(b"acsp"), 0) + rng.randrange(4, 300)
    return data[:start] + rng.randbytes(20) + data[start + 20 :]


DAMAGES: tuple[Damage, ...] = (
    *(cut_off, cut_off, flip_bytes, flip_bytes, flip_header, wrong_magic, nothing, noise),
    *(hole, twice, trailing, huge, huge, bad_exif, bad_profile),
)
