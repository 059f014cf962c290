"""What share of the tiny model's pictures show what was asked for: shape, color, background and pattern.

    python tests/benchmarks/tiny_model.py --model hcpdiff/tiny-sd3
    python tests/benchmarks/tiny_model.py --model hcpdiff/tiny-sd3 --lora exps/lora/style.safetensors

With a LoRA of a striped background (examples/data/striped), prompts that ask for stripes are measured without and with
it, and so are plain prompts, which it should leave as they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from hcpdiff.data.sources.scenes import SHAPES, Scene, Scenes, describe
from hcpdiff.infer.generation import generate
from hcpdiff.infer.request import Request
from hcpdiff.models.family import ModelFamily
from tests.benchmarks import probe

SIZE = (48, 48)
PER_SEED = 16  # pictures that start from the same noise, and are made in one batch


def scenes(count: int, *, pattern: str = "plain", size: tuple[int, int] = SIZE, seed: int = 1000) -> list[Scene]:
    """What the pictures are to show."""
    source = Scenes(count, seed=seed, patterns=[pattern], sizes=[size])
    return [source.scene(i) for i in range(count)]


def draw(family: ModelFamily, wanted: Sequence[Scene], *, steps: int = 20, guidance: float = 4.0) -> list[np.ndarray]:
    """A picture of each scene, which are all of one size."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(wanted), PER_SEED):
        part = wanted[start : start + PER_SEED]
        request = Request(
            prompts=[describe(scene) for scene in part],
            size=part[0].size,
            steps=steps,
            guidance=guidance,
            seed=start,
            batch_size=PER_SEED,
        )
        pictures += [np.asarray(picture.image) for picture in generate(family, request)]
    return pictures


def per_shape(reader: probe.Probe, pictures: Sequence[np.ndarray], wanted: Sequence[Scene]) -> dict[str, float]:
    """Share of right shapes, for each shape."""
    rights: dict[str, list[bool]] = {shape: [] for shape in SHAPES}
    for seen, scene in zip(reader.read(pictures), wanted, strict=True):
        rights[scene.shape].append(seen["shape"] == scene.shape)
    return {shape: sum(right) / len(right) for shape, right in rights.items() if right}


def sheet(pictures: Sequence[np.ndarray], *, columns: int = 16, scale: int = 2) -> Image.Image:
    """Pictures of one size side by side."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + 2), columns * (width + 2), 3), 128, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1))


def report(family: ModelFamily, reader: probe.Probe, name: str, wanted: Sequence[Scene], out: Path | None) -> None:
    """Draw the scenes and print what share is right."""
    started = time.perf_counter()
    pictures = draw(family, wanted)
    shares = probe.share_right(reader, pictures, wanted)
    print(f"{name} ({len(wanted)} pictures, {time.perf_counter() - started:.0f} s)")
    print("   ", "  ".join(f"{question} {share:.1%}" for question, share in shares.items()))
    print(
        "    shapes:", "  ".join(f"{shape} {share:.0%}" for shape, share in per_shape(reader, pictures, wanted).items())
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        sheet(pictures).save(out / f"{name.replace(' ', '-')}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hcpdiff/tiny-sd3")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--out", type=Path, help="folder for contact sheets")
    arguments = parser.parse_args()

    from hcpdiff.models import SD3
    from hcpdiff.plugins import weights

    family = SD3.from_pretrained(arguments.model, t5=False)
    reader = probe.load(family)
    plain, striped = scenes(arguments.count), scenes(arguments.count // 2, pattern="striped")
    wide = scenes(arguments.count // 4, size=(40, 56))
    report(family, reader, "plain", plain, arguments.out)
    report(family, reader, "plain wide", wide, arguments.out)
    if arguments.lora is not None:
        report(family, reader, "striped without LoRA", striped, arguments.out)
        weights.merge(family, arguments.lora)
        report(family, reader, "striped with LoRA", striped, arguments.out)
        report(family, reader, "plain with LoRA", plain, arguments.out)


if __name__ == "__main__":
    main()
