"""Captioned pictures that are drawn on demand: one coloured shape on a coloured background.

They are the training data of the embedded tiny model, and a data source that needs no files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from PIL import Image

from hcpdiff.config.ranges import Range
from hcpdiff.data.sources.base import Record
from hcpdiff.randomness import python_random

COLORS = {
    "red": (214, 32, 38),
    "orange": (250, 140, 22),
    "yellow": (250, 226, 40),
    "green": (34, 150, 50),
    "cyan": (60, 205, 220),
    "blue": (34, 64, 200),
    "purple": (124, 44, 156),
    "pink": (250, 140, 190),
    "white": (246, 246, 246),
    "black": (22, 22, 22),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
PATTERNS = ("plain", "striped", "checkered", "dotted")
SIZES = ((48, 48), (48, 48), (40, 56), (56, 40))  # (height, width); named twice, drawn twice as often

SMALL, LARGE = 12.0, 15.0  # a radius below / above this is called small / large
OFFSET = 5.0  # pixels off the middle from which on a position is called left, right, top or bottom
RENDERING = 1  # counts up when the same scene is drawn differently, so that caches notice
_RADII = (10.5, 17.5)
_MARGIN = 1.5  # pixels between a shape and the border
_SUPERSAMPLING = 4
_FRACTION = 4  # bits after the point, in OpenCV's fixed-point coordinates


@dataclass(frozen=True)
class Scene:
    """What is in a picture; lengths are in pixels, positions are (y, x)."""

    shape: str
    color: str
    background: str
    center: tuple[float, float]
    radius: float
    size: tuple[int, int] = (48, 48)  # (height, width)
    pattern: str = "plain"

    @property
    def size_word(self) -> str:
        """ "small", "large", or "" for what is in between."""
        return "small" if self.radius < SMALL else "large" if self.radius > LARGE else ""

    @property
    def position_words(self) -> str:
        """Where the shape is: "at the top left", "at the right", "in the middle" ..."""
        words = []
        for center, length, (low, high) in zip(
            self.center, self.size, (("top", "bottom"), ("left", "right")), strict=True
        ):
            offset = center - length / 2
            words += [low] if offset < -OFFSET else [high] if offset > OFFSET else []
        return "at the " + " ".join(words) if words else "in the middle"


def describe(scene: Scene, *, size: bool = False, position: bool = False) -> str:
    """A caption such as "a small red star at the top left on a striped blue background"."""
    pattern = "" if scene.pattern == "plain" else scene.pattern
    subject = _phrase(scene.size_word if size else "", scene.color, scene.shape)
    where = scene.position_words if position else ""
    return " ".join(filter(None, [subject, where, "on", _phrase(pattern, scene.background, "background")]))


def render(scene: Scene) -> np.ndarray:
    """The picture, (H, W, 3) uint8 RGB, with smooth edges."""
    canvas = _background(scene)
    cells = _SUPERSAMPLING
    canvas = np.ascontiguousarray(canvas.repeat(cells, axis=0).repeat(cells, axis=1))
    cv2.fillPoly(canvas, _corners_of(scene), COLORS[scene.color], shift=_FRACTION)
    return cv2.resize(canvas, scene.size[::-1], interpolation=cv2.INTER_AREA)


def outline(scene: Scene) -> np.ndarray:
    """A map of where the shape is, (H, W, 3) uint8: its outline, white on black, a pixel and a half wide."""
    cells = _SUPERSAMPLING
    canvas = np.zeros((scene.size[0] * cells, scene.size[1] * cells, 3), dtype=np.uint8)
    thickness = round(1.5 * cells)
    cv2.polylines(
        canvas, _corners_of(scene), isClosed=True, color=(255, 255, 255), thickness=thickness, shift=_FRACTION
    )
    return cv2.resize(canvas, scene.size[::-1], interpolation=cv2.INTER_AREA)


def _corners_of(scene: Scene) -> list[np.ndarray]:
    """The outlines of the shape on the enlarged canvas, in OpenCV's fixed-point coordinates."""
    center = np.array(scene.center[::-1])
    return [
        np.round(((center + scene.radius * line) * _SUPERSAMPLING - 0.5) * 2**_FRACTION).astype(np.int32)
        for line in _OUTLINES[scene.shape]
    ]


class Scenes:
    """A data source of `count` random scenes: scene i is a pure function of (seed, i).

    Args:
        count: how many there are.
        seed: another seed gives other scenes.
        sizes: (height, width) of the pictures, in pixels; a size that is named twice is drawn twice as often.
        shapes, colors, patterns: what to draw, out of SHAPES, COLORS and PATTERNS.
        detail: share of the captions that name the size, and, independently, the position.
        outlines: give each picture the outline of its shape as `control_image`, for a ControlNet.
    """

    def __init__(
        self,
        count: int = 60000,
        *,
        seed: int = 0,
        sizes: Sequence[Sequence[int]] = SIZES,
        shapes: Sequence[str] = SHAPES,
        colors: Sequence[str] = tuple(COLORS),
        patterns: Sequence[str] = ("plain",),
        detail: Annotated[float, Range(ge=0, le=1)] = 0.3,
        outlines: bool = False,
    ) -> None:
        for name, given, known in (
            ("shapes", shapes, SHAPES),
            ("colors", colors, COLORS),
            ("patterns", patterns, PATTERNS),
        ):
            wrong = [word for word in given if word not in known]
            if wrong or not given:
                problem = f"{', '.join(wrong)} cannot be drawn" if wrong else "the list is empty"
                raise ValueError(f"Scenes.{name}: {problem}; use some of {', '.join(known)}")
        if len(set(colors)) < 2:
            raise ValueError("Scenes.colors: a shape and its background need two different colors")
        if min(min(size) for size in sizes) < 2 * (_RADII[0] + _MARGIN):
            raise ValueError(f"Scenes.sizes: sides must be at least {math.ceil(2 * (_RADII[0] + _MARGIN))} pixels")
        self.count = count
        self.seed = seed
        self._sizes = [(int(height), int(width)) for height, width in sizes]
        self.shapes, self.colors, self.patterns = tuple(shapes), tuple(colors), tuple(patterns)
        self.detail = detail
        self.outlines = outlines

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """What is in picture `index`."""
        draw = python_random(self.seed, "scene", index)
        height, width = draw.choice(self._sizes)
        color, background = draw.sample(self.colors, 2)
        radius = draw.uniform(_RADII[0], min(_RADII[1], min(height, width) / 2 - _MARGIN))
        room = radius + _MARGIN
        return Scene(
            shape=draw.choice(self.shapes),
            color=color,
            background=background,
            center=(draw.uniform(room, height - room), draw.uniform(room, width - room)),
            radius=radius,
            size=(height, width),
            pattern=draw.choice(self.patterns),
        )

    def key(self, index: int) -> str:
        return f"scene-{self.seed}-{index:06}"

    def size(self, index: int) -> tuple[int, int]:
        return self.scene(index).size

    def captions(self, index: int) -> list[str]:
        draw = python_random(self.seed, "scene caption", index)
        size, position = draw.random() < self.detail, draw.random() < self.detail
        return [describe(self.scene(index), size=size, position=position)]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        scene = self.scene(index)
        inputs = {"control_image": Image.fromarray(outline(scene))} if self.outlines else {}
        return Record(Image.fromarray(render(scene)), inputs=inputs)

    def fingerprint(self, index: int) -> str:
        """Hash of what is drawn; the caches need not draw it."""
        return hashlib.blake2b(repr((RENDERING, self.scene(index), self.outlines)).encode(), digest_size=16).hexdigest()


def _phrase(*words: str) -> str:
    phrase = " ".join(filter(None, words))
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _background(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 of the background color alone, or with a pattern of a shade of it."""
    main = np.array(COLORS[scene.background], dtype=np.float64)
    other = main + 0.65 * (255 - main) if main.mean() < 150 else main * 0.6
    y, x = np.mgrid[: scene.size[0], : scene.size[1]]
    where = {
        "plain": np.zeros(scene.size, dtype=bool),
        "striped": x % 8 >= 4,
        "checkered": (x // 6 + y // 6) % 2 == 1,
        "dotted": (x % 8 - 3.5) ** 2 + (y % 8 - 3.5) ** 2 < 6,
    }[scene.pattern]
    return np.where(where[..., None], other, main).round().astype(np.uint8)


def _circle(radius: float) -> np.ndarray:
    angle = np.arange(64) * (2 * np.pi / 64)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _corners(count: int, *radii: float) -> np.ndarray:
    """`count` corners around the middle, the first one on top, with radii in turn."""
    angle = np.arange(count) * (2 * np.pi / count) - np.pi / 2
    return np.resize(radii, count)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _cross(arm: float) -> np.ndarray:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    turns = [[(x, y), (-y, x), (-x, -y), (y, -x)] for x, y in quarter]
    return np.array([turns[corner][turn] for turn in range(4) for corner in range(3)])


def _heart() -> np.ndarray:
    t = np.arange(64) * (2 * np.pi / 64)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -(y + 2.5)], axis=-1) / 16


# The outlines of each shape within a radius of 1, (corners, 2) of (x, y); an inner outline is a hole.
_OUTLINES = {
    "circle": [_circle(0.95)],
    "square": [0.84 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])],
    "triangle": [np.array([(0, -0.95), (1, 0.85), (-1, 0.85)])],
    "diamond": [np.array([(0, -1.0), (0.72, 0), (0, 1.0), (-0.72, 0)])],
    "star": [_corners(10, 1.05, 0.46) + np.array([0, 0.05])],
    "cross": [_cross(0.34)],
    "ring": [_circle(1.0), _circle(0.55)],
    "heart": [_heart()],
}
