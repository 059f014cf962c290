"""`hcpdiff init`: a folder to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

PACKAGE = Path(__file__).parent


def create(folder: Path) -> list[Path]:
    """Copy the shipped configs and example pictures into `folder`; what was written, the pictures as one folder.

    Raises:
        ValueError: a file of such a name is there already; nothing is written then.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: this is a file; choose another name for the folder")
    configs = _first_that_is(PACKAGE / "cfgs", PACKAGE.parent / "cfgs")
    pictures = _first_that_is(PACKAGE / "example_data", PACKAGE.parent / "examples" / "data")
    starters = {path: folder / "cfgs" / path.name for path in sorted(configs.glob("*.yaml"))}
    examples = {
        path: folder / "examples" / "data" / path.relative_to(pictures)
        for path in sorted(pictures.rglob("*"))
        if path.is_file()
    }
    taken = [str(target) for target in [*starters.values(), *examples.values()] if target.exists()]
    if taken:
        there = f"{taken[0]} and {len(taken) - 1} more are" if len(taken) > 1 else f"{taken[0]} is"
        raise ValueError(f"{folder}: nothing was written, because {there} there already; choose another folder")
    for source, target in (starters | examples).items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return [*starters.values(), folder / "examples" / "data"]


def _first_that_is(*folders: Path) -> Path:
    """The folder inside an installed wheel, or that of a checkout."""
    return next(folder for folder in folders if folder.is_dir())
