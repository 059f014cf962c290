"""`hcpdiff init`: a folder to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

PACKAGE = Path(__file__).parent
STARTERS = ("lora.yaml", "full_finetune.yaml", "controlnet.yaml", "infer.yaml")


def create(folder: Path) -> list[Path]:
    """Copy starter configs and example pictures into `folder`, and say what was written.

    Raises:
        ValueError: a file of such a name is there already; nothing is written then.
    """
    configs = _first_that_is(PACKAGE / "cfgs", PACKAGE.parent / "cfgs")
    pictures = _first_that_is(PACKAGE / "example_data", PACKAGE.parent / "examples" / "data")
    copies = {configs / name: folder / "cfgs" / name for name in STARTERS}
    copies |= {p: folder / "examples" / "data" / p.relative_to(pictures) for p in sorted(pictures.rglob("*")) if p.is_file()}
    taken = [str(target) for target in copies.values() if target.exists()]
    if taken:
        raise ValueError(f"{folder}: nothing was written, because {taken[0]} is there already; choose another folder")
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return [folder / "cfgs" / name for name in STARTERS] + [folder / "examples" / "data"]


def _first_that_is(*folders: Path) -> Path:
    """The folder inside an installed wheel, or that of a checkout."""
    return next(folder for folder in folders if folder.is_dir())
