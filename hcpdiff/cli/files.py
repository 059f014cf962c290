"""Commands that work with files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hcpdiff.cli.options import Cfg, Overrides, Trust


def convert(
    path: Annotated[Path, typer.Argument(help="A LoRA file of any program, or a folder of PEFT.")],
    to: Annotated[str, typer.Option("--to", help="kohya, diffusers, peft, comfyui or webui: where it shall load.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; for peft a folder. Default: beside the first.")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", help="sd, sdxl, sd3 or flux, where the file does not tell.")
    ] = None,
) -> None:
    """Write a LoRA in the form of another program. Layers and strength stay what they are."""
    from hcpdiff.formats.convert import convert as write

    print(f"wrote {write(path, to, out, family)}")


def merge(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Mix models and add LoRAs to them, as a new model. What to merge is in the config's `merge` section."""
    from hcpdiff.tools.merge import merge_config

    merged = merge_config(cfg, overrides or (), trust=trust or ())
    print(f"wrote {merged.path}: {len(merged.changed)} layers are others than in the base")
