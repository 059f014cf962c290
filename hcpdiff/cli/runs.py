"""Commands that work with a config: what to run, and what to know before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from hcpdiff.cli.options import Cfg, Overrides, Trust


def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one without files of these names.")]) -> None:
    """Make a folder with starter configs and example data. Nothing is overwritten."""
    from hcpdiff.project import create

    for path in create(folder):
        print(path)
    print(f"now: cd {folder} && hcpdiff train --cfg cfgs/lora.yaml")


def train(
    cfg: Cfg,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help='"auto": go on from the newest checkpoint, if any; or a checkpoint\'s folder.'),
    ] = None,
    trust: Trust = None,
) -> None:
    """Train what a config says."""
    from hcpdiff.train.run import train as run

    try:
        print(f"done: {run(cfg, overrides or (), resume=resume, trust=trust or ())}")
    except KeyboardInterrupt as interrupt:
        default = "interrupted; --resume auto goes on from the newest checkpoint, if there is one"
        raise KeyboardInterrupt(str(interrupt) or default) from None


def infer(
    cfg: Cfg,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given again.")] = None,
    negative: Annotated[str | None, typer.Option("--negative", help="What to steer away from.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A text file, one prompt per line.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the first picture.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the pictures.")] = None,
    trust: Trust = None,
) -> None:
    """Make pictures."""
    from hcpdiff.infer.request import prompts_from_file
    from hcpdiff.infer.run import infer as run

    texts = (prompt or []) + (prompts_from_file(prompts) if prompts else [])
    given = {"prompts": texts or None, "negative": negative, "seed": seed, "out": None if out is None else str(out)}
    changes = {key: value for key, value in given.items() if value is not None}
    pictures = run(cfg, overrides or (), changes=changes, trust=trust or ())
    for picture in pictures:
        print(picture.path)


def check(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Find all mistakes of a config. Keys, types, values, paths and layer selectors are looked at; nothing is run."""
    from hcpdiff.config import ConfigError, load
    from hcpdiff.config import check as find_mistakes

    config = load(cfg, overrides or (), trust or ())
    if mistakes := find_mistakes(config, selectors=True):
        raise ConfigError(mistakes)
    print(f"{cfg}: no mistakes")


def show(cfg: Cfg, overrides: Overrides = None) -> None:
    """Show the composed config, and where each value came from. Of a file that a run wrote: that run and its config."""
    from hcpdiff.config import ConfigError, leaves, load
    from hcpdiff.config.stored import facts

    config = load(cfg, overrides or ())
    for fact in facts(config.file):
        print(f"# {fact}")
    rows = [(f"{key}: {value}", str(origin)) for key, value, origin in leaves(config)]
    width = min(max((len(text) for text, _ in rows), default=0), 72)
    for text, origin in rows:
        print(f"{text:<{width}}  # {origin}")
    if config.mistakes:
        raise ConfigError(config.mistakes)


def layers(
    cfg: Cfg,
    pattern: Annotated[str | None, typer.Argument(help="A selector, e.g. 're:.*attn.to_q'.")] = None,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--on", help="A part of the model: denoiser, vae ...")] = "denoiser",
    trust: Trust = None,
) -> None:
    """List the layers of a model, or what a selector matches. With numbers of parameters."""
    from hcpdiff.config import load
    from hcpdiff.config.selectors import skeleton
    from hcpdiff.plugins.targets import find_layers

    changes = list(overrides or ())
    if pattern is not None and re.match(r"[+~]{0,2}[\w./@-]+=", pattern):  # `layers --cfg FILE model=sdxl`
        pattern, changes = None, [pattern, *changes]
    model = skeleton(load(cfg, changes, trust or ()), on)
    refs = find_layers(model, [pattern if pattern is not None else "re:.+"], where="pattern")
    for ref in refs:
        count = sum(p.numel() for p in ref.layer.parameters())
        print(f"{ref.path or '(the whole model)':<56} {type(ref.layer).__name__:<24} {count:>12,}")
    print(f"{len(refs)} layers of {on}")


def data(
    cfg: Cfg,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Where the page goes; contact sheets lie beside it.")] = Path(
        "data.html"
    ),
    images: Annotated[int, typer.Option("--images", help="How many of each dataset to decode at most.")] = 500,
    trust: Trust = None,
) -> None:
    """Show what a run will see. Problems, sizes, crops and final prompts, as text, a page and a contact sheet."""
    from hcpdiff.train.data_report import report

    for line in report(cfg, overrides or (), out=out, images=images, trust=trust or ()):
        print(line)
