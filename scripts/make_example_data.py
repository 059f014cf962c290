"""Draw the pictures of examples/data: a background style that the tiny model has never seen, for it to learn.

python scripts/make_example_data.py --out examples/data/striped
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hcpdiff.data.scenes import Scenes


def write(out: Path, *, pattern: str, count: int, seed: int) -> None:
    """`count` pictures and their captions.json."""
    scenes = Scenes(count, seed=seed, patterns=[pattern], detail=0)
    out.mkdir(parents=True, exist_ok=True)
    captions = {}
    for i in range(count):
        name = f"{i:02}.png"
        scenes.load(i).image.save(out / name, optimize=True)
        captions[name] = scenes.captions(i)[0]
    (out / "captions.json").write_text(json.dumps(captions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pattern", default="striped")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=100)
    write(**vars(parser.parse_args()))
