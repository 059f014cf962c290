from __future__ import annotations

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from hcpdiff.data.sources.base import Record
from hcpdiff.data.transforms import augment, cut, image_tensor, place, scaled_size, unit_tensor
from hcpdiff.types import SizeInfo


def gradient(height: int, width: int) -> Image.Image:
    """Red grows downwards, green to the right."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, 0 * x], axis=-1).astype(np.uint8))


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


def test_albumentations_moves_all_together_and_colours_only_the_image() -> None:
    image = gradient(64, 64)
    record = Record(image, loss_mask=np.asarray(image, dtype=np.float32)[..., 1], inputs={"control_image": image})
    example = cut(record, place((64, 64), (64, 64)))
    mirror = albumentations.Compose([albumentations.HorizontalFlip(p=0.5)])
    seen = set()
    for seed in range(12):
        result = augment(example, mirror, seed)
        assert np.array_equal(result.image, result.inputs["control_image"])
        assert np.array_equal(result.image[..., 1], result.loss_mask)
        assert np.array_equal(result.image, augment(example, mirror, seed).image)
        seen.add(bool(result.image[0, 0, 1]))
    assert seen == {False, True}
    dark = albumentations.Compose([albumentations.RandomBrightnessContrast((-0.5, -0.5), (0, 0), p=1)])
    assert augment(example, dark, 0).image.mean() < example.image.mean()
    assert np.array_equal(augment(example, dark, 0).inputs["control_image"], example.image)


def test_a_pipeline_that_resizes_is_refused() -> None:
    example = cut(Record(gradient(64, 64)), place((64, 64), (64, 64)))
    with pytest.raises(ValueError, match="transforms: image became 8 x 8, but the bucket's size is 64 x 64"):
        augment(example, albumentations.Compose([albumentations.Resize(8, 8)]), 0)


def test_any_function_of_arrays_is_a_pipeline() -> None:
    example = cut(Record(gradient(8, 8)), place((8, 8), (8, 8)))
    result = augment(example, lambda image: {"image": 255 - image}, 0)
    assert torch.equal(image_tensor(result.image), -image_tensor(example.image))
