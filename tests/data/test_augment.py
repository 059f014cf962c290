from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from hcpdiff.data.images.augment import Pipeline
from hcpdiff.data.images.cutting import Cut, cut, place
from hcpdiff.data.sources.base import Record


def gradient(height: int, width: int) -> Image.Image:
    """Red grows downwards, green to the right."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, 0 * x + 50], axis=-1).astype(np.uint8))


def run(
    transforms: Any, seed: int = 0, original: tuple[int, int] = (64, 64), target: tuple[int, int] = (64, 64)
) -> Cut:
    """Of an image with an equal condition image, and its green as the mask."""
    image = gradient(*original)
    record = Record(image, np.asarray(image, dtype=np.float32)[..., 1], {"control_image": image})
    return cut(record, place(original, target), transforms=Pipeline.of(transforms), seed=seed)


def agree(example: Cut) -> bool:
    """Whether mask and condition image show the same part as the image."""
    return bool(
        np.array_equal(example.image, example.inputs["control_image"])
        and example.loss_mask is not None
        and np.array_equal(example.image[..., 1], example.loss_mask)
    )


def test_albumentations_moves_all_together_and_colours_only_the_image() -> None:
    mirror = A.Compose([A.HorizontalFlip(p=0.5)])
    seen = set()
    for seed in range(12):
        result = run(mirror, seed)
        assert agree(result)
        assert np.array_equal(result.image, run(copy.deepcopy(mirror), seed).image)
        seen.add(bool(result.image[0, 0, 1]))
    assert seen == {False, True}
    dark = run(A.RandomBrightnessContrast((-0.5, -0.5), (0, 0), p=1))
    assert dark.image.mean() < run(None).image.mean()
    assert np.array_equal(dark.inputs["control_image"], run(None).image)


@pytest.mark.parametrize(
    "transforms",
    [
        [A.Rotate((40, 40), interpolation=0, p=1), A.InvertImg(p=1)],
        A.Compose([A.InvertImg(p=1), A.Rotate((40, 40), interpolation=0, p=1)]),
        A.Compose([A.Sequential([A.Rotate((40, 40), interpolation=0, p=1)], p=1), A.OneOf([A.InvertImg(p=1)], p=1)]),
        A.Compose([A.Sequential([A.Rotate((40, 40), interpolation=0, p=1), A.InvertImg(p=1)], p=1)]),
    ],
)
def test_what_moves_runs_before_the_crop_so_that_no_empty_corner_is_seen(transforms: Any) -> None:
    result = run(transforms, original=(192, 192), target=(192, 64))
    plain = run(A.Rotate((40, 40), interpolation=0, p=1), original=(192, 192), target=(192, 64))
    assert agree(plain)
    assert np.array_equal(result.image, 255 - plain.image)
    assert np.array_equal(result.inputs["control_image"], plain.image)
    inside = run(A.Rotate((40, 40), p=1), original=(128, 192), target=(128, 128)).image[40:88, 40:88]
    assert inside[..., 2].min() == 50


def test_a_container_of_both_kinds_chooses_once_for_all() -> None:
    either = A.Compose([A.OneOf([A.HorizontalFlip(p=1), A.InvertImg(p=1)], p=1)])
    plain, mirrored = run(None), run(A.HorizontalFlip(p=1))
    seen = set()
    for seed in range(12):
        result = run(either, seed)
        if np.array_equal(result.image, mirrored.image):
            assert agree(result)
            seen.add("mirrored")
        else:
            assert np.array_equal(result.image, 255 - plain.image)
            assert np.array_equal(result.inputs["control_image"], plain.image)
            seen.add("inverted")
    assert seen == {"mirrored", "inverted"}


def test_a_pipeline_with_a_probability_stays_whole() -> None:
    sometimes = A.Compose([A.HorizontalFlip(p=1), A.InvertImg(p=1)], p=0.5)
    plain, both = run(None).image, 255 - run(A.HorizontalFlip(p=1)).image
    kinds = [
        (np.array_equal(image, plain), np.array_equal(image, both))
        for image in (run(sometimes, seed).image for seed in range(12))
    ]
    assert set(kinds) == {(True, False), (False, True)}


def test_the_stages_of_a_list_keep_their_order() -> None:
    def add(image: np.ndarray, **_: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image // 2 + 10}

    def double(image: np.ndarray, **_: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image // 2 * 2}

    plain = run(None).image
    assert np.array_equal(run([add, double]).image, (plain // 2 + 10) // 2 * 2)
    assert np.array_equal(run([double, add]).image, plain // 2 * 2 // 2 + 10)


def test_any_function_runs_after_the_crop_unless_it_says_that_it_is_geometric() -> None:
    shapes = []

    def look(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append({name: array.shape for name, array in arrays.items()})
        return {}

    def early(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        return look(**arrays)

    early.geometric = True  # type: ignore[attr-defined]
    result = run([look, early], original=(100, 80), target=(40, 40))
    assert np.array_equal(result.image, run(None, original=(100, 80), target=(40, 40)).image)
    assert shapes == [
        {"image": (50, 40, 3), "control_image": (50, 40, 3), "loss_mask": (50, 40)},
        {"image": (40, 40, 3), "control_image": (40, 40, 3), "loss_mask": (40, 40)},
    ]


def test_a_random_function_repeats_itself_and_leaves_the_global_generators_alone() -> None:
    def noisy(image: np.ndarray, **_: np.ndarray) -> dict[str, np.ndarray]:
        noise = np.random.randint(0, 9) + random.randrange(9) + int(torch.randint(0, 9, ()))
        return {"image": image // 2 + np.uint8(noise)}

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    shown = [run(noisy, seed).image for seed in range(20)]
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert all(np.array_equal(run(noisy, seed).image, shown[seed]) for seed in range(20))
    assert len({image.tobytes() for image in shown}) > 5


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (
            A.Compose([A.Resize(8, 8)]),
            "transforms: image became 8 x 8, but must stay 64 x 64, .* leave out what",
        ),
        (A.RandomCrop(32, 32), "transforms: image became 32 x 32, but must stay 64 x 64"),
        (lambda **arrays: {"image": arrays["image"][:10]}, "transforms: image became 10 x 64, but must stay 64 x 64"),
        (lambda **arrays: {"image": arrays["image"] / 255}, "transforms: image became float64"),
        (lambda **arrays: {"image": arrays["image"][..., :1]}, r"transforms: image became uint8 \(64, 64, 1\)"),
        (lambda **arrays: {"picture": arrays["image"]}, "transforms: they gave 'picture', which was not given to them"),
        (lambda **arrays: arrays["image"], "gave ndarray; use {'image': array}"),
        (A.Compose([A.Normalize()]), "transforms: Normalize is not needed, .* leave it out"),
        (A.ToTensorV2(), "transforms: ToTensorV2 is not needed"),
        (3, "transforms: 3 cannot be called"),
    ],
)
def test_what_the_dataset_cannot_use_is_an_error_that_says_so(transforms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(transforms)


def test_no_transforms_are_no_pipeline() -> None:
    assert Pipeline.of(None) is None
    assert Pipeline.of([]) is None


class Brighter(torch.nn.Module):
    """Its `repr` is "Brighter()" whatever its strength."""

    def __init__(self, strength: int) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: np.ndarray, **_: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image // 2 + np.uint8(self.strength)}


def test_the_text_of_a_pipeline_shows_its_settings_or_an_address() -> None:
    assert repr(Pipeline(A.Compose([A.Rotate(30)]))) == repr(Pipeline(A.Compose([A.Rotate(30)])))
    assert repr(Pipeline(A.Compose([A.Rotate(30)]))) != repr(Pipeline(A.Compose([A.Rotate(31)])))
    assert " at 0x" not in repr(Pipeline(A.Compose([A.Rotate(30)])))
    silent: list[Callable[..., Any]] = [Brighter(3), lambda **arrays: {}]
    for transform in silent:
        assert " at 0x" in repr(Pipeline(transform))


def test_a_pipeline_can_be_sent_to_worker_processes() -> None:
    pipeline = Pipeline([A.Compose([A.HorizontalFlip(p=0.5), A.ColorJitter(p=1)]), Brighter(5)])
    image = gradient(32, 32)
    ours, theirs = (
        cut(Record(image), place((32, 32), (32, 32)), transforms=each, seed=3).image
        for each in (pipeline, pickle.loads(pickle.dumps(pipeline)))
    )
    assert np.array_equal(ours, theirs)


def test_torchvision_v2_moves_all_together_and_colours_only_the_image() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    seen = set()
    for seed in range(12):
        result = run(v2.Compose([v2.ColorJitter(), v2.RandomHorizontalFlip()]), seed)
        assert agree(result)
        seen.add(bool(result.image[0, 0, 1]))
    assert seen == {False, True}
    result, plain = run([v2.RandomRotation(90), v2.RandomInvert(p=1)], 5), run(v2.RandomRotation(90), 5)
    assert agree(plain)
    assert np.array_equal(result.image, 255 - plain.image)
    assert np.array_equal(result.inputs["control_image"], plain.image)
    assert not np.array_equal(run(v2.RandomRotation(90), 6).image, plain.image)


def test_torchvision_v1_colours_the_image_and_moves_it_if_nothing_belongs_to_it() -> None:
    v1 = pytest.importorskip("torchvision.transforms")
    result = run(v1.Compose([v1.RandomInvert(p=1)]))
    assert np.array_equal(result.image, 255 - run(None).image)
    assert np.array_equal(result.inputs["control_image"], run(None).image)
    mirror, image = v1.RandomHorizontalFlip(p=1), gradient(64, 64)
    alone = cut(Record(image), place((64, 64), (64, 64)), transforms=Pipeline.of(mirror)).image
    assert np.array_equal(alone, np.asarray(image)[:, ::-1])
    with pytest.raises(ValueError, match=r"cannot move control_image and loss_mask .* use torchvision.transforms.v2"):
        run(mirror)


def test_torchvision_is_split_and_refused_like_albumentations() -> None:
    v1, v2 = pytest.importorskip("torchvision.transforms"), pytest.importorskip("torchvision.transforms.v2")
    early = [v2.RandomRotation(9), v1.RandomApply([v1.GaussianBlur(3), v1.RandomRotation(9)]), v2.RandomPerspective()]
    late = [v2.GaussianBlur(3), v1.RandomApply([v1.ColorJitter(0.1)]), v1.RandomErasing(), v2.RandomChoice([v2.RGB()])]
    for version in (v1, v2):
        pipeline = Pipeline(version.Compose([*late, *early]))
        assert (len(pipeline.before), len(pipeline.after)) == (len(early), len(late))
        with pytest.raises(ValueError, match="transforms: Normalize is not needed"):
            Pipeline(version.Compose([version.Normalize([0.5], [0.5])]))
    assert " at 0x" in repr(Pipeline(v2.Lambda(abs)))
    assert " at 0x" not in repr(Pipeline(v2.ColorJitter(0.3)))
    with pytest.raises(ValueError, match="image became 8 x 8, but must stay 64 x 64"):
        run(v2.Resize((8, 8)))
