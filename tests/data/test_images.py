from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from hcpdiff.data.images import read_grey, read_rgb, read_size


@pytest.fixture
def corner() -> Image.Image:
    """20 x 30, black but for a white top left corner."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    return Image.fromarray(pixels)


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
