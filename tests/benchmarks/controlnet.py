"""Does a ControlNet learn to follow its map? Overlap of the drawn shape and the mapped one, without and with it.

    hcpdiff train --cfg cfgs/controlnet.yaml
    python tests/benchmarks/controlnet.py --control exps/controlnet/control.safetensors

The prompts name the shape either way, so what is gained is place, size and form.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from hcpdiff.data.sources.scenes import COLORS, Scenes, describe, outline, render
from hcpdiff.infer.generation import generate
from hcpdiff.infer.request import Request
from hcpdiff.infer.save import contact_sheet
from hcpdiff.models import SD3
from hcpdiff.plugins.weights import attach_file


def mask(picture: np.ndarray, color: str, background: str) -> np.ndarray:
    """(H, W) of bool: the pixels that are nearer to the shape's color than to the background's."""
    pixels = picture.astype(np.float64)
    to_color, to_background = (((pixels - np.array(COLORS[c])) ** 2).sum(-1) for c in (color, background))
    return to_color < to_background


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hcpdiff/tiny-sd3")
    parser.add_argument("--control", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--sheet", type=Path, help="write the first pictures there")
    args = parser.parse_args()

    source = Scenes(args.count, seed=4321, sizes=[(48, 48)])
    family = SD3.from_pretrained(args.model, t5=False)
    rows = {"map": [], "without": [], "with": []}
    overlaps = {"without": [], "with": []}
    plugins = attach_file(family, args.control, name="control")
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.count):
            scene = source.scene(i)
            path = Path(folder) / f"{i}.png"
            Image.fromarray(outline(scene)).save(path)
            request = Request(
                prompts=[describe(scene)], size=scene.size, steps=20, guidance=4.0, seed=i, control_image=str(path)
            )
            wanted = mask(render(scene), scene.color, scene.background)
            for name, strength in (("without", 0.0), ("with", 1.0)):
                plugins.set_strength("control", strength)
                picture = generate(family, request, plugins=plugins)[0]
                rows[name].append(picture)
                overlaps[name].append(overlap(wanted, mask(np.asarray(picture.image), scene.color, scene.background)))
            rows["map"].append(replace(rows["with"][-1], image=Image.open(path).convert("RGB").copy()))
    for name, values in overlaps.items():
        print(f"{name:>8} the ControlNet: overlap {np.mean(values):.3f}, least {np.min(values):.3f}")
    if args.sheet:
        contact_sheet([row[:6] for row in rows.values()], list(rows)).save(args.sheet)


if __name__ == "__main__":
    main()
