"""Commands that work with files of weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from hcpdiff.cli.options import Cfg, Overrides, Trust

Family = Annotated[
    str | None,
    typer.Option("--family", help="sd, sdxl, sd3, flux, pixart, zimage or qwen_image, if the file does not tell."),
]


def convert(
    path: Annotated[Path, typer.Argument(help="A LoRA of any program, learned words, or a model: a file or a folder.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="For a LoRA: kohya, lycoris, diffusers, peft, comfyui or webui. For words: kohya, diffusers, a1111, "
            "onetrainer or bundle. For a model: folder or single.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file or folder to write. Default: beside the first.")
    ] = None,
    family: Family = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Of the LoRA that another form becomes for diffusers and PEFT; 64.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of a model: float32, bfloat16 or float16.")] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", help="Of a model's folder: the most bytes of a file, e.g. 5GB.")
    ] = None,
    configs: Annotated[
        str | None, typer.Option("--configs", help="A model whose configs and tokenizers go with a single file.")
    ] = None,
) -> None:
    """Write a LoRA, words or a model in another form. Layers, strength and values stay what they are."""
    from hcpdiff.cli import converting

    options = {"family": family, "rank": rank, "dtype": dtype, "shard_size": shard_size, "configs": configs}
    for written in converting.run(path, to, out, options):
        print(f"wrote {written}")


def merge(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Mix models and add LoRAs to them, as a new model. What to merge is in the config's `merge` section."""
    from hcpdiff.tools.merge import merge_config

    merged = merge_config(cfg, overrides or (), trust=trust or ())
    print(f"wrote {merged.path}: {len(merged.changed)} layers differ from those of the base")


Rank = Annotated[int | None, typer.Option("--rank", help="Of every layer.")]
Energy = Annotated[
    float | None,
    typer.Option("--energy", help="Instead of a rank: the share of the squared singular values to keep, e.g. 0.95."),
]


def extract(
    base: Annotated[Path, typer.Argument(help="A model: a folder or a single file.")],
    tuned: Annotated[Path, typer.Argument(help="Another one of its family, or the weights of one part.")],
    out: Annotated[Path, typer.Option("--out", help="A new .safetensors file.")],
    rank: Rank = None,
    energy: Energy = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layers", help="A selector, e.g. 're:denoiser.*attn.*'; may be given again.")
    ] = None,
) -> None:
    """Write the difference of two models as a LoRA. Of a given rank, or of the rank that each layer needs."""
    from hcpdiff.tools.extract import extract as run

    done = run(base, tuned, out, rank=rank, energy=energy, layers=layers or ())
    worst = min(done.kept, key=lambda layer: done.kept[layer])
    print(
        f"wrote {done.path}: {len(done.ranks)} layers of {_ranks(done.ranks.values())} with {done.energy:.1%} of the "
        f"squared change; least in {worst}: {done.kept[worst]:.1%}"
    )


def resize(
    path: Annotated[Path, typer.Argument(help="A LoRA file of any program, or a folder of PEFT.")],
    out: Annotated[Path, typer.Option("--out", help="A new file; for a folder of PEFT a new folder.")],
    rank: Rank = None,
    energy: Energy = None,
    family: Family = None,
) -> None:
    """Write a LoRA with smaller ranks. With the least error, and the strength that it has."""
    from hcpdiff.tools.resize import resize as run

    done = run(path, out, rank=rank, energy=energy, family=family)
    print(f"wrote {done.path}: {len(done.ranks)} layers of {_ranks(done.ranks.values())}, off by {done.error:.1%}")


def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder with weights, of any program.")],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    family: Family = None,
) -> None:
    """Show what a file holds. A LoRA, a learned word, a ControlNet, a plugin, a model, a checkpoint of a run."""
    from hcpdiff.tools.inspect import inspect as look

    report = look(path, family=family)
    for line in [report.json()] if as_json else report.lines(layers=layers):
        print(line)


def _ranks(ranks: Collection[int]) -> str:
    return f"rank {min(ranks)}" if min(ranks) == max(ranks) else f"ranks {min(ranks)} to {max(ranks)}"
