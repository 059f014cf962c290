"""Options that several commands have."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Cfg = Annotated[Path, typer.Option("--cfg", help="The config: a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value: change a key of the config.")]


def _find_in_current_folder(trust: list[str] | None) -> list[str] | None:
    """A package that the user trusts may be a file in the current folder, as with `python -m hcpdiff`."""
    if (trust or os.environ.get("HCPDIFF_TRUST")) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return trust


Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        help="A package that the config may use besides the known ones; may be given again.",
        callback=_find_in_current_folder,
    ),
]
