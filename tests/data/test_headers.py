from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, UnidentifiedImageError

from hcpdiff.data.images import headers
from hcpdiff.data.images.headers import image_size
from hcpdiff.data.images.reading import UnreadableImageError, read_size

HEIGHT, WIDTH = 23, 37
XMP = b'<x:xmpmeta tiff:Orientation="6"/>'


def encoded(kind: str, mode: str = "RGB", *, size: tuple[int, int] = (HEIGHT, WIDTH), **options: object) -> bytes:
    """A noisy picture in a format."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, format=kind, **options)
    return content.getvalue()


def exif(orientation: int, *, thumbnail: int = 0) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "a camera"
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.ImageDescription] = "x" * thumbnail
    return tags


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "picture"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a file that should be plain is left to Pillow."""
    monkeypatch.setattr(headers, "read_size", lambda path: pytest.fail("was left to Pillow"))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.usefixtures("without_pillow")
def test_orientation_is_applied_without_pillow(kind: str, orientation: int | None, written: Callable) -> None:
    options = {} if orientation is None else {"exif": exif(orientation, thumbnail=9000)}
    expected = (WIDTH, HEIGHT) if (orientation or 1) >= 5 else (HEIGHT, WIDTH)
    assert image_size(written(encoded(kind, **options))) == expected


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"icc_profile": b"p" * 150_000}),
        ("JPEG", "RGB", {"xmp": b"<x:xmpmeta/>"}),
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("PNG", "RGBA", {"icc_profile": b"p" * 9000}),
        ("PNG", "RGB", {"size": (700, 600)}),  # several chunks of pixels
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "L", {}),
        ("GIF", "RGB", {"comment": b"c" * 9000}),
        ("BMP", "RGB", {}),
        ("BMP", "RGBA", {}),
    ],
)
@pytest.mark.usefixtures("without_pillow")
def test_usual_files_are_read_without_pillow(kind: str, mode: str, options: dict, written: Callable) -> None:
    size = options.get("size", (HEIGHT, WIDTH))
    assert image_size(written(encoded(kind, mode, **options))) == size


@pytest.mark.parametrize(
    "content",
    [
        encoded("TIFF", exif=exif(6)),
        encoded("JPEG", xmp=XMP),
        encoded("WEBP", xmp=XMP),
        encoded("JPEG", xmp=XMP, exif=exif(1)),
        encoded("JPEG", exif=exif(9)),
        encoded("JPEG", exif=exif(6))[:-4],
        encoded("BMP", "P"),
        encoded("PNG")[:-12] + png_chunk(b"eXIf", exif(6).tobytes()[6:]) + encoded("PNG")[-12:],
        encoded("PNG", size=(700, 600))[:-12] + png_chunk(b"eXIf", exif(6).tobytes()[6:]) + encoded("PNG")[-12:],
        encoded("PNG")[:-12],
        encoded("GIF")[:6] + b"\x05\x00\x05\x00" + encoded("GIF")[10:],  # the screen is smaller than the frame
        encoded("GIF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]),
        encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]),
        encoded("JPEG", exif=exif(6)).replace(b"a camera", b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_unusual_files_have_the_size_that_pillow_says(content: bytes, written: Callable) -> None:
    path = written(content)
    try:
        expected = read_size(path)
    except OSError as error:
        with pytest.raises(type(error), match="picture"):
            image_size(path)
    else:
        assert image_size(path) == expected


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged metadata
def test_damaged_files_never_get_another_size_than_pillow_says(written: Callable) -> None:
    rng = random.Random(0)
    kinds = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {}), ("BMP", {})]
    read = 0
    for (kind, options), orientation in itertools.product(kinds, [None, 1, 3, 6, 8]):
        whole = encoded(kind, **options, **({} if orientation is None else {"exif": exif(orientation)}))
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(min(len(damaged), 400))] = rng.randrange(256)
            path = written(bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])]))
            try:
                expected = read_size(path)
            except OSError:
                continue  # broken beyond the header: whoever decodes it says so
            assert image_size(path) == expected
            read += 1
    assert read > 200


def test_a_file_that_is_no_image_or_missing_is_an_error(written: Callable, tmp_path: Path) -> None:
    for content in (b"", b"\xff\xd8\xff", b"not an image", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM"):
        with pytest.raises(UnidentifiedImageError, match="picture"):
            image_size(written(content))
    with pytest.raises(FileNotFoundError):
        image_size(tmp_path / "nowhere.png")
    with pytest.raises(UnreadableImageError, match="picture"):
        image_size(written(encoded("WEBP")[:-5]))  # cut off
