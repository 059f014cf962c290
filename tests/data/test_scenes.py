from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.scenes import COLORS, PATTERNS, SHAPES, SIZES, Scene, Scenes, describe, render

A_STAR = Scene("star", "red", "blue", center=(24, 24), radius=15)


def area(image: np.ndarray, color: str) -> float:
    """Share of the pixels that have this color."""
    return float((np.abs(image.astype(int) - COLORS[color]).max(axis=-1) < 8).mean())


def test_scenes_are_a_source_and_depend_on_seed_and_index_alone() -> None:
    scenes, again, other = Scenes(20), Scenes(500), Scenes(20, seed=1)
    assert isinstance(scenes, Source)
    assert len(scenes) == 20
    for i in (7, 3):
        image = np.asarray(scenes.load(i).image)
        assert image.shape == (*scenes.size(i), 3)
        np.testing.assert_array_equal(image, np.asarray(again.load(i).image))
        assert scenes.captions(i) == again.captions(i)
        assert scenes.fingerprint(i) == again.fingerprint(i)
    assert len({scenes.fingerprint(i) for i in range(20)} | {other.fingerprint(i) for i in range(20)}) == 40
    assert len({scenes.key(i) for i in range(20)} | {other.key(i) for i in range(20)}) == 40


def test_all_shapes_colors_and_sizes_occur_and_no_pattern_does_unless_asked() -> None:
    scenes = [Scenes(400).scene(i) for i in range(400)]
    assert {scene.shape for scene in scenes} == set(SHAPES)
    assert {scene.color for scene in scenes} == {scene.background for scene in scenes} == set(COLORS)
    assert {scene.size for scene in scenes} == set(SIZES)
    assert {scene.pattern for scene in scenes} == {"plain"}
    assert all(scene.color != scene.background for scene in scenes)
    patterned = Scenes(50, patterns=["striped", "dotted"])
    assert {patterned.scene(i).pattern for i in range(50)} == {"striped", "dotted"}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_color_and_stays_inside(shape: str) -> None:
    for i in range(30):
        scene = replace(Scenes(30).scene(i), shape=shape)
        image = render(scene)
        assert 0.05 < area(image, scene.color) < 0.5
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        np.testing.assert_array_equal(border, np.broadcast_to(COLORS[scene.background], border.shape))


def test_no_two_shapes_look_alike() -> None:
    masks = {shape: render(replace(A_STAR, shape=shape))[..., 0] > 124 for shape in SHAPES}
    for one, other in itertools.combinations(SHAPES, 2):
        overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
        assert overlap < 0.87, (one, other)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_keeps_half_of_the_background_color_and_the_shape(pattern: str) -> None:
    plain, image = render(A_STAR), render(replace(A_STAR, pattern=pattern))
    assert area(image, "blue") >= 0.4 * area(plain, "blue")
    assert area(image, "red") == pytest.approx(area(plain, "red"))
    assert (area(image, "blue") == area(plain, "blue")) == (pattern == "plain")


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (A_STAR, "a red star in the middle on a blue background"),
        (replace(A_STAR, radius=11), "a small red star in the middle on a blue background"),
        (replace(A_STAR, radius=16, center=(18, 31)), "a large red star at the top right on a blue background"),
        (replace(A_STAR, color="orange", center=(30, 24)), "an orange star at the bottom on a blue background"),
        (
            replace(A_STAR, pattern="striped", background="orange"),
            "a red star in the middle on a striped orange background",
        ),
        (replace(A_STAR, background="orange", center=(24, 18)), "a red star at the left on an orange background"),
    ],
)
def test_captions_say_what_is_to_be_seen(scene: Scene, caption: str) -> None:
    assert describe(scene, size=True, position=True) == caption


def test_captions_name_size_and_position_now_and_then() -> None:
    captions = [Scenes(300).captions(i)[0] for i in range(300)]
    assert 0.15 < np.mean([" at the " in c or " in the " in c for c in captions]) < 0.45
    assert 0.08 < np.mean([" small " in c or " large " in c for c in captions]) < 0.35
    assert all("small" not in c and " the " not in c for c in (Scenes(50, detail=0).captions(i)[0] for i in range(50)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ["star", "dog"]}, "Scenes.shapes: dog cannot be drawn; use some of circle"),
        ({"patterns": []}, "Scenes.patterns: the list is empty"),
        ({"colors": ["red", "red"]}, "two different colors"),
        ({"sizes": [[16, 64]]}, "at least 24 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(options: dict[str, list], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(10, **options)
