from __future__ import annotations

import errno
import io
import logging
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from hcpdiff.data.images import colours
from hcpdiff.data.images.reading import UnreadableImageError, read_alpha, read_grey, read_rgb, read_size

D50 = (0.9642, 1.0, 0.8249)
SRGB = {b"rXYZ": (0.4360, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}


@pytest.fixture
def corner() -> Image.Image:
    """20 x 30, black but for a white top left corner."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    return Image.fromarray(pixels)


def png(width: int, height: int, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks after the header."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks, (b"IEND", b""))
    )


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """An ICC profile, version 2.4."""
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(data), 0x02400000, kind, space, connection, b"acsp")
    return head.ljust(68, b"\0") + fixed(*D50).ljust(60, b"\0") + struct.pack(">I", len(tags)) + table + data


def linear(space: bytes) -> bytes:
    """The profile of "RGB " or "GRAY" whose numbers are amounts of light."""
    curve = struct.pack(">4s4xIH", b"curv", 1, 256)
    xyz = {name: b"XYZ \0\0\0\0" + fixed(*value) for name, value in {b"wtpt": D50, **SRGB}.items()}
    if space == b"GRAY":
        return profile(b"mntr", space, b"XYZ ", {b"wtpt": xyz[b"wtpt"], b"kTRC": curve})
    return profile(b"mntr", space, b"XYZ ", {**xyz, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_inks() -> bytes:
    """A CMYK profile of four inks without colour: L* is 100 without ink; C, M and Y take a third each, K all."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    cells = b"".join(bytes((round(255 * (1 - (c + m + y) / 3) * (1 - k)), 128, 128)) for c, m, y, k in corners)
    head = struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = head + bytes(range(256)) * 4 + cells + bytes(range(256)) * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), b"A2B0": lut})


def shades(image: Image.Image) -> list[int]:
    return np.asarray(image)[0, :, 0].tolist()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_size_and_pixels(
    corner: Image.Image, orientation: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    corner.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert read_size(path) == (expected.height, expected.width)
    assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(expected))


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 250, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("rgba.png", "la.png", "palette.png"):
        assert read_rgb(tmp_path / name, background=(10, 20, 30)).getpixel((0, 0)) == (10, 20, 30)


def test_opaque_palettes_and_cmyk_keep_their_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 250, 0, 0])
    palette.save(tmp_path / "palette.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert read_rgb(tmp_path / "palette.png").getpixel((0, 0)) == (250, 0, 0)
    assert read_rgb(tmp_path / "cmyk.tif").getpixel((0, 0)) == (255, 0, 0)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        assert np.asarray(read_rgb(tmp_path / name))[0, :, 0].tolist() == [0, 100, 255]


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_size(tmp_path / "a.gif") == (4, 6)
    assert read_rgb(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_jpeg_may_come_smaller_but_covers_what_is_needed(tmp_path: Path) -> None:
    Image.new("RGB", (800, 600)).save(tmp_path / "a.jpg")
    small = read_rgb(tmp_path / "a.jpg", at_least=(100, 120))
    assert small.height < 600
    assert small.height >= 100
    assert small.width >= 120


def test_masks_are_read_as_upright_grey(corner: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    corner.save(tmp_path / "a.png", exif=exif)
    grey = read_grey(tmp_path / "a.png")
    assert (grey.mode, grey.size) == ("L", (20, 30))
    assert grey.getpixel((19, 0)) == 255  # turned by 90 degrees: the white corner is at the top right


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_is_turned_wherever_its_exif_stands(corner: Image.Image, place: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(corner))))
    turn = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path = tmp_path / "a.png"
    path.write_bytes(png(30, 20, 8, 2, *((turn, pixels) if place == "before" else (pixels, turn))))
    assert read_size(path) == (30, 20)
    assert read_rgb(path).size == (20, 30)
    assert read_rgb(path).getpixel((19, 0)) == (255, 255, 255)


def test_a_tiff_turned_by_its_xmp_has_the_size_that_it_is_decoded_to(corner: Image.Image, tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    corner.save(tmp_path / "a.tif", tiffinfo={700: xmp})
    decoded = read_rgb(tmp_path / "a.tif")
    assert read_size(tmp_path / "a.tif") == (decoded.height, decoded.width)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of the EXIF block
def test_broken_exif_breaks_no_image(corner: Image.Image, tmp_path: Path) -> None:
    corner.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x02\0\xff" * 9)
    assert read_size(tmp_path / "a.jpg") == (20, 30)
    assert read_rgb(tmp_path / "a.jpg").size == (30, 20)


def test_an_embedded_profile_is_applied(tmp_path: Path) -> None:
    light = Image.fromarray(np.array([[0, 55, 128, 255]], dtype=np.uint8))
    for number, image in enumerate((light.convert("RGB"), light.convert("RGBA"))):
        image.save(tmp_path / f"{number}.png", icc_profile=linear(b"RGB "))
        # the sRGB curve: 55 / 255 of the light is 0.502 of the range, 128 / 255 is 0.737
        assert shades(read_rgb(tmp_path / f"{number}.png")) == pytest.approx([0, 128, 188, 255], abs=1)
    for name, space in {"grey": b"GRAY", "colour": b"RGB "}.items():
        light.save(tmp_path / f"{name}.png", icc_profile=linear(space))
        assert shades(read_rgb(tmp_path / f"{name}.png")) == pytest.approx([0, 128, 188, 255], abs=1)


def test_masks_are_numbers_whatever_their_profile(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 128).save(tmp_path / "a.png", icc_profile=linear(b"GRAY"))
    assert read_grey(tmp_path / "a.png").getpixel((0, 0)) == 128


def test_srgb_profiles_change_no_pixel(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), np.asarray(image))


@pytest.mark.parametrize("name", ["inks.jpg", "inks.tif"])
def test_cmyk_follows_its_profile_also_where_adobe_stores_it_inverted(name: str, tmp_path: Path) -> None:
    inks = {(255, 0, 0, 0): 161, (0, 0, 255, 0): 161, (0, 0, 0, 0): 255, (0, 0, 0, 255): 0}  # L* 66.7 is sRGB 161
    for ink, grey in inks.items():
        Image.new("CMYK", (16, 16), ink).save(tmp_path / name, icc_profile=grey_inks())
        assert read_rgb(tmp_path / name).getpixel((8, 8)) == pytest.approx((grey, grey, grey), abs=2)
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / name)
    assert read_rgb(tmp_path / name).getpixel((8, 8)) == pytest.approx((0, 255, 255), abs=2)


@pytest.mark.parametrize(
    "broken",
    [
        b"no profile",
        linear(b"RGB ")[:150],
        linear(b"RGB ").replace(b"curv", b"crvu"),
        linear(b"RGB ").replace(b"RGB ", b"\xdd\xee  "),
    ],
)
def test_a_broken_profile_is_taken_for_srgb_and_told_once(
    broken: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    colours._described.cache_clear()
    Image.new("RGB", (4, 4), (10, 128, 250)).save(tmp_path / "a.png", icc_profile=broken)
    with caplog.at_level(logging.WARNING, "hcpdiff.data"):
        for _ in range(3):
            assert read_rgb(tmp_path / "a.png").getpixel((0, 0)) == (10, 128, 250)
    assert len([line for line in caplog.messages if "colour profile is taken for sRGB" in line]) == 1


def test_a_profile_of_other_channels_is_passed_over(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (10, 128, 250)).save(tmp_path / "a.png", icc_profile=grey_inks())
    assert read_rgb(tmp_path / "a.png").getpixel((0, 0)) == (10, 128, 250)


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    for lab, rgb in {(255, 0, 0): (255, 255, 255), (138, 81, 70): (255, 0, 0), (0, 0, 0): (0, 0, 0)}.items():
        Image.frombytes("LAB", (4, 4), bytes(lab) * 16).save(tmp_path / "a.tif")  # L* 255 is 100; a* and b* signed
        assert read_rgb(tmp_path / "a.tif").getpixel((0, 0)) == pytest.approx(rgb, abs=8)  # a* and b* are rounded


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_are_scaled_and_not_clipped(channels: int, suffix: str, tmp_path: Path) -> None:
    values = np.full((1, 3, channels), 65535, dtype=np.uint16)
    values[0, :, 2] = [0, 257 * 100, 65535]  # cv2's order: blue, green, red
    cv2.imwrite(str(tmp_path / f"a{suffix}"), values)
    assert shades(read_rgb(tmp_path / f"a{suffix}")) == [0, 100, 255]


def test_a_transparent_colour_of_16_bits_is_transparent(tmp_path: Path) -> None:
    rows = (b"IDAT", zlib.compress(b"\0" + struct.pack(">3H", 0, 25700, 65535)))
    (tmp_path / "grey.png").write_bytes(png(3, 1, 16, 0, (b"tRNS", struct.pack(">H", 25700)), rows))
    rows = (b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 0, 0, 0, 25700, 25700, 25700)))
    (tmp_path / "rgb.png").write_bytes(png(2, 1, 16, 2, (b"tRNS", struct.pack(">3H", 25700, 25700, 25700)), rows))
    assert shades(read_rgb(tmp_path / "grey.png", background=(7, 7, 7))) == [0, 7, 255]
    assert shades(read_rgb(tmp_path / "rgb.png", background=(7, 7, 7))) == [0, 7]


def test_white_is_white_in_any_depth_of_a_tiff(tmp_path: Path) -> None:
    for dtype, white in ((np.uint16, 65535), (np.int32, 2**31 - 1), (np.float32, 1.0), (np.float32, 255.0)):
        image = Image.fromarray(np.array([[0, white]], dtype=dtype))
        image.save(tmp_path / "a.tif")
        assert shades(read_rgb(tmp_path / "a.tif")) == [0, 255]


def test_alpha_is_upright_and_none_without_transparency(corner: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = corner.convert("RGBA")
    image.putalpha(corner.convert("L"))
    image.save(tmp_path / "a.webp", exif=exif, lossless=True)
    alpha = read_alpha(tmp_path / "a.webp")
    assert alpha is not None
    assert (alpha.mode, alpha.size, alpha.getpixel((19, 0)), alpha.getpixel((0, 0))) == ("L", (20, 30), 255, 0)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 250, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    keyed = read_alpha(tmp_path / "palette.png")
    assert keyed is not None
    assert keyed.getextrema() == (0, 0)
    corner.save(tmp_path / "a.jpg")
    assert read_alpha(tmp_path / "a.jpg") is None


def test_the_content_decides_and_open_files_are_read_too(corner: Image.Image, tmp_path: Path) -> None:
    corner.save(tmp_path / "a.jpg", format="PNG")
    Image.new("1", (5, 7), 1).save(tmp_path / "b.webp", format="GIF")
    with (tmp_path / "a.jpg").open("rb") as file:
        assert read_size(file) == (20, 30)
        assert np.array_equal(np.asarray(read_rgb(file)), np.asarray(corner))
        assert read_grey(file).getpixel((0, 0)) == 255
        assert read_alpha(file) is None
        assert not file.closed
    assert read_rgb(io.BytesIO((tmp_path / "b.webp").read_bytes())).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "jp2", "avif", "ppm", "tga"])
@pytest.mark.parametrize("read", [read_rgb, read_grey, read_alpha])
def test_half_a_file_is_an_error_that_names_it(suffix: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=rf"^half\.{suffix}: "):
        read(path)


def test_bombs_and_images_without_pixels_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 2, (b"IDAT", zlib.compress(b"0"))))
    for read in (read_size, read_rgb):
        with pytest.raises(UnreadableImageError, match=r"bomb\.png: it claims more than 179 megapixels"):
            read(tmp_path / "bomb.png")
    (tmp_path / "none.png").write_bytes(png(0, 5, 8, 2, (b"IDAT", zlib.compress(b""))))
    with pytest.raises(OSError, match=r"none\.png: "):
        read_size(tmp_path / "none.png")


def test_a_place_beyond_the_file_is_a_broken_image_but_a_broken_disk_is_not(
    corner: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corner.save(tmp_path / "a.png")
    for number, kind in {errno.EINVAL: UnreadableImageError, errno.EIO: OSError}.items():

        def fail(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            read_size(tmp_path / "a.png")
        assert type(caught.value) is kind


def test_what_is_no_image_is_named_and_no_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for name, content in {"page.png": page, "empty.jpg": b"", "text.png": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnidentifiedImageError, match=rf"^{name}: no image"):
            read_rgb(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_rgb(tmp_path / "missing.png")


@pytest.mark.parametrize("needed", [(100, 120), (60, 60), (299, 399), (300, 400), (600, 800), (1000, 1000)])
def test_a_jpeg_keeps_twice_what_is_needed_so_that_it_stays_sharp(needed: Sequence[int], tmp_path: Path) -> None:
    Image.new("RGB", (800, 600)).save(tmp_path / "a.jpg")
    result = read_rgb(tmp_path / "a.jpg", at_least=(needed[0], needed[1]))
    assert result.height >= min(600, 2 * needed[0])
    assert result.width >= min(800, 2 * needed[1])
