"""Draw the pictures of examples/data.

    python scripts/make_example_data.py

striped/: a background style that the tiny model has never seen, for a LoRA to learn. Half of the pictures are plain, as
    the model knows them, so that stripes do not spread to every picture.
outlines/: control images, one per shape, for the previews of a ControlNet.
toy/: one thing, a pink heart, in front of different backgrounds, for a word to learn. The captions call it my-toy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from hcpdiff.data.sources.scenes import SHAPES, Scene, Scenes, outline, render
from hcpdiff.randomness import python_random


def write_pictures(out: Path, *, seed: int = 100, count: int = 32) -> None:
    """`count` striped and `count` plain pictures, and their captions.json."""
    out.mkdir(parents=True, exist_ok=True)
    captions = {}
    for pattern in ("striped", "plain"):
        seed += 1
        scenes = Scenes(count, seed=seed, patterns=[pattern], detail=0)
        for i in range(count):
            name = f"{pattern}-{i:02}.png"
            scenes.load(i).image.save(out / name, optimize=True)
            captions[name] = scenes.captions(i)[0]
    (out / "captions.json").write_text(json.dumps(captions, indent=2) + "\n", encoding="utf-8")


def write_outlines(out: Path) -> None:
    """A map of each shape, off the middle."""
    out.mkdir(parents=True, exist_ok=True)
    for i, shape in enumerate(SHAPES):
        scene = Scene(shape, "black", "white", center=(20.0 + i % 3 * 4, 28.0 - i % 2 * 8), radius=14.0)
        Image.fromarray(outline(scene)).save(out / f"{shape}.png", optimize=True)


def write_toy(out: Path) -> None:
    """Twelve pictures and their captions.json; blue and yellow backgrounds are left for previews."""
    out.mkdir(parents=True, exist_ok=True)
    captions = {}
    for i in range(12):
        background = ("red", "orange", "green", "cyan", "purple", "white", "black")[i % 7]
        draw = python_random(0, "toy", i)
        center = draw.uniform(18, 30), draw.uniform(18, 30)
        name = f"toy-{i:02}.png"
        scene = Scene("heart", "pink", background, center, radius=draw.uniform(10.5, 16))
        Image.fromarray(render(scene)).save(out / name, optimize=True)
        captions[name] = f"a my-toy on {'an' if background == 'orange' else 'a'} {background} background"
    (out / "captions.json").write_text(json.dumps(captions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/data"))
    folder = parser.parse_args().out
    write_pictures(folder / "striped")
    write_outlines(folder / "outlines")
    write_toy(folder / "toy")
