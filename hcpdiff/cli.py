"""The command line: parse, call, print."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune diffusion models from a short YAML file, and make pictures with them.",
    rich_markup_mode=None,
)

Cfg = Annotated[Path, typer.Option("--cfg", help="The config: a YAML file.")]
Overrides = Annotated[Optional[list[str]], typer.Argument(help="key=value: change a key of the config.")]  # noqa: UP045
Trust = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--trust", help="A package that the config may use besides the known ones; may be given again."),
]


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one without files of these names.")]) -> None:
    """Make a folder with starter configs and example data; overwrite nothing."""
    from hcpdiff.project import create

    for path in create(folder):
        print(path)


@app.command()
def train(
    cfg: Cfg,
    overrides: Overrides = None,
    resume: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--resume", help='"auto": go on from the newest checkpoint, if any; or a checkpoint\'s folder.'),
    ] = None,
    trust: Trust = None,
) -> None:
    """Train what a config says."""
    from hcpdiff.train.run import train as run

    print(f"done: {run(cfg, overrides or (), resume=resume, trust=trust or ())}")


@app.command()
def infer(
    cfg: Cfg,
    overrides: Overrides = None,
    prompt: Annotated[Optional[list[str]], typer.Option("--prompt", help="A prompt; may be given again.")] = None,  # noqa: UP045
    negative: Annotated[Optional[str], typer.Option("--negative", help="What to steer away from.")] = None,  # noqa: UP045
    prompts: Annotated[Optional[Path], typer.Option("--prompts", help="A text file, one prompt per line.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option("--seed", help="Of the first picture.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder for the pictures.")] = None,  # noqa: UP045
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


@app.command()
def check(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Find all mistakes of a config without running it: keys, types, values, paths and layer selectors."""
    from hcpdiff.config import ConfigError, load
    from hcpdiff.config import check as find_mistakes

    config = load(cfg, overrides or (), trust or ())
    if mistakes := find_mistakes(config, selectors=True):
        raise ConfigError(mistakes)
    print(f"{cfg}: no mistakes")


@app.command()
def show(cfg: Cfg, overrides: Overrides = None) -> None:
    """Print the composed config, and where each value came from."""
    from hcpdiff.config import load
    from hcpdiff.config.loading import leaves

    rows = [(f"{key}: {value}", str(origin)) for key, value, origin in leaves(load(cfg, overrides or ()))]
    width = min(max((len(text) for text, _ in rows), default=0), 72)
    for text, origin in rows:
        print(f"{text:<{width}}  # {origin}")


@app.command()
def layers(
    cfg: Cfg,
    pattern: Annotated[Optional[str], typer.Argument(help="A selector, e.g. 're:.*attn.to_q'.")] = None,  # noqa: UP045
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--on", help="The part of the model: denoiser, text_encoders.clip_l, vae ...")] = "denoiser",
    trust: Trust = None,
) -> None:
    """List layer names to target, or what a selector matches, with numbers of parameters."""
    from hcpdiff.config import load
    from hcpdiff.config.selectors import skeleton
    from hcpdiff.plugins.targets import find_layers

    model = skeleton(load(cfg, overrides or (), trust or ()), on)
    refs = find_layers(model, [pattern if pattern is not None else "re:.+"], where="pattern")
    for ref in refs:
        count = sum(p.numel() for p in ref.layer.parameters())
        print(f"{ref.path or '(the whole model)':<56} {type(ref.layer).__name__:<24} {count:>12,}")
    print(f"{len(refs)} layers of {on}")


@app.command()
def data(
    cfg: Cfg,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Where the contact sheet goes.")] = Path("data.png"),
    trust: Trust = None,
) -> None:
    """Show what a run will see: sizes, crops and final prompts, as text and as a contact sheet."""
    from hcpdiff.train.data_report import report

    for line in report(cfg, overrides or (), out=out, trust=trust or ()):
        print(line)


def main() -> None:
    """The console script. Exit codes: 0; 2 for a mistake of the user; 1 when a run failed; 130 when interrupted."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hcpdiff").setLevel(logging.INFO)
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        _fail(error, 2)
    except KeyboardInterrupt as error:
        _fail(error, 130)
    except RuntimeError as error:
        if os.environ.get("HCPDIFF_DEBUG"):
            raise
        _fail(error, 1)


def _fail(error: BaseException, code: int) -> None:
    print(str(error) or "interrupted", file=sys.stderr)
    sys.exit(code)
