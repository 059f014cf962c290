from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hcpdiff.data.images import cutting as transforms
from hcpdiff.data.images.cutting import cut, image_tensor, place, scaled_size, unit_tensor
from hcpdiff.data.images.reading import read_rgb
from hcpdiff.data.sources.base import Record
from hcpdiff.types import SizeInfo


def gradient(height: int, width: int) -> Image.Image:
    """Red grows downwards, green to the right."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, 0 * x], axis=-1).astype(np.uint8))


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Textured as photographs are (amplitudes fall as 1 / frequency), with hard edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency) for _ in range(4)]
    base, *colours = (layer / layer.std() for layer in noise)
    pixels = np.stack([0.85 * base + 0.35 * colour for colour in colours], axis=-1)
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        top, left, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.03, 0.2) * min(height, width)
        pixels[(y - top) ** 2 + (x - left) ** 2 < radius**2] += rng.normal(0, 0.7, 3)
    return Image.fromarray((pixels * 45 + 120).clip(0, 255).astype(np.uint8))


def test_an_image_is_scaled_to_cover_and_cropped_at_a_position() -> None:
    assert scaled_size((200, 100), (64, 64)) == (128, 64)
    assert place((200, 100), (64, 64)) == SizeInfo((200, 100), (32, 0), (64, 64))
    assert place((200, 100), (64, 64), (0.0, 0.0)).crop == (0, 0)
    assert place((200, 100), (64, 64), (1.0, 1.0)).crop == (64, 0)


@pytest.mark.parametrize("original", [(64, 64), (100, 41), (41, 100), (33, 97), (1000, 3), (1, 1)])
@pytest.mark.parametrize("target", [(64, 64), (40, 56), (24, 72)])
def test_every_crop_lies_inside_the_scaled_image(original: tuple[int, int], target: tuple[int, int]) -> None:
    height, width = scaled_size(original, target)
    for position in ((0.0, 0.0), (0.5, 0.5), (0.999, 0.999), (1.0, 1.0)):
        top, left = place(original, target, position).crop
        assert 0 <= top <= height - target[0]
        assert 0 <= left <= width - target[1]
    assert cut(Record(gradient(*original)), place(original, target)).image.shape == (*target, 3)


def test_cutting_equals_scaling_the_whole_image_and_then_cropping() -> None:
    image = gradient(200, 150)
    size = place((200, 150), (64, 96), (0.3, 0.7))
    height, width = scaled_size((200, 150), (64, 96))
    whole = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    expected = whole[size.crop[0] : size.crop[0] + 64, size.crop[1] : size.crop[1] + 96]
    # the crop's box is a fraction of a pixel off, as the scaled size is rounded
    assert np.abs(cut(Record(image), size).image.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("original", [(512, 512), (416, 608), (600, 900), (1000, 300), (100, 140), (1100, 1300)])
@pytest.mark.parametrize("fast", [True, False])
def test_jpegs_come_out_as_by_decoding_all_and_scaling_with_lanczos(
    original: tuple[int, int], fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "_torch_has_lanczos", lambda: fast)
    photograph(*original).save(tmp_path / "a.jpg", quality=90)
    size = place(original, (256, 256), (0.3, 0.7))
    with Image.open(tmp_path / "a.jpg") as image:
        method = Image.Resampling.LANCZOS if min(original) > 256 else Image.Resampling.BICUBIC
        whole = np.asarray(image.convert("RGB").resize(size.scaled[::-1], method), dtype=int)
    expected = whole[size.crop[0] : size.crop[0] + 256, size.crop[1] : size.crop[1] + 256]
    result = cut(Record(read_rgb(tmp_path / "a.jpg", at_least=size.scaled)), size).image
    difference = np.abs(result - expected)
    halved = min(original) >= 4 * 256  # decoded at half its size, which is the only real difference
    # of 255; else both round twice, across and down, but not in the same order
    assert difference.mean() < (2 if halved else 0.5)
    assert np.quantile(difference, 0.999) <= 8


def test_exact_sizes_are_not_touched() -> None:
    image = gradient(64, 48)
    assert np.array_equal(cut(Record(image), place((64, 48), (64, 48))).image, np.asarray(image))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resolution", [(200, 150), (100, 75), (400, 300)])
def test_mask_and_control_image_of_any_resolution_follow_the_image(resolution: tuple[int, int], flip: bool) -> None:
    image = gradient(200, 150)
    other = image.resize(resolution[::-1], Image.Resampling.BILINEAR)
    mask = np.asarray(other, dtype=np.float32)[..., 1]
    size = place((200, 150), (64, 80), (0.2, 0.9))
    result = cut(Record(image, loss_mask=mask, inputs={"control_image": other}), size, flip=flip)
    # values grow by 2 from pixel to pixel of the result: all three agree within half a pixel
    assert np.abs(result.image.astype(int) - result.inputs["control_image"].astype(int)).mean() < 1
    assert result.loss_mask is not None
    assert np.abs(result.image[..., 1] - result.loss_mask).mean() < 1
    assert (result.image[0, 0, 1] > result.image[0, -1, 1]) == flip


def test_a_mask_never_leaves_its_range() -> None:
    mask = np.zeros((10, 10), dtype=np.float32)
    mask[5:] = 1.0
    result = cut(Record(gradient(10, 10), loss_mask=mask), place((10, 10), (64, 64))).loss_mask
    assert result is not None
    assert (result.min(), result.max()) == (0.0, 1.0)


def test_another_shape_is_an_error_that_gives_both() -> None:
    record = Record(gradient(64, 64), inputs={"control_image": gradient(64, 80)})
    with pytest.raises(ValueError, match=r"the control_image is 64 x 80, .* not the shape of the image, 64 x 64"):
        cut(record, place((64, 64), (32, 32)))


def test_tensors_have_the_documented_ranges() -> None:
    array = np.array([[[0, 255, 51]]], dtype=np.uint8)
    assert image_tensor(array).flatten().tolist() == pytest.approx([-1, 1, -0.6])
    assert unit_tensor(array).flatten().tolist() == pytest.approx([0, 1, 0.2])
    assert image_tensor(np.zeros((4, 6, 3), dtype=np.uint8)).shape == (3, 4, 6)


def test_negating_an_image_negates_its_tensor_exactly() -> None:
    array = np.array(gradient(64, 64))
    assert torch.equal(image_tensor(255 - array), -image_tensor(array))


def test_without_resizing_a_small_image_lies_at_the_top_left_of_black_that_counts_nothing() -> None:
    image = gradient(20, 50)
    size = place((20, 50), (32, 40), (0.0, 1.0), resize=False)
    assert size == SizeInfo((20, 50), (0, 10), (32, 40), (20, 50))
    for flip in (False, True):
        result = cut(Record(image, inputs={"control_image": image}), size, flip=flip)
        expected = np.asarray(image)[:, 10:]
        assert np.array_equal(result.image[:20], expected[:, ::-1] if flip else expected)
        assert not result.image[20:].any()
        assert np.array_equal(result.inputs["control_image"], result.image)
        assert result.loss_mask is not None
        assert result.loss_mask[:20].min() == 1
        assert result.loss_mask[20:].max() == 0


def test_without_resizing_a_mask_is_padded_too_and_a_large_image_only_cropped() -> None:
    image, mask = gradient(20, 50), np.full((10, 25), 3.0, dtype=np.float32)
    padded = cut(Record(image, mask), place((20, 50), (24, 56), resize=False)).loss_mask
    assert padded is not None
    assert (padded[:20, :50] == 3).all()
    assert padded.sum() == 3 * 20 * 50
    cropped = cut(Record(image), place((20, 50), (16, 16), resize=False))
    assert np.array_equal(cropped.image, np.asarray(image)[2:18, 17:33])
    assert cropped.loss_mask is None


def test_the_scaled_size_is_known_without_being_told() -> None:
    assert SizeInfo((200, 100), (0, 0), (64, 64)).scaled == (128, 64)
    assert SizeInfo((200, 100), (0, 0), (64, 64), (200, 100)).scaled == (200, 100)
    assert SizeInfo((200, 100), (0, 0), (64, 64)) == SizeInfo((200, 100), (0, 0), (64, 64), (128, 64))


def test_a_source_without_images_gives_arrays_without_channels() -> None:
    result = cut(Record(None), place((64, 64), (32, 48)))
    assert image_tensor(result.image).shape == (0, 32, 48)
