"""The command line: parse, call, print; and what went wrong as a line of text and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import hcpdiff

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune diffusion models from a short YAML file, and make pictures with them.",
    rich_markup_mode=None,
)

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

# What click raises for wrong arguments; some versions of typer bring a click of their own, with a class of its own.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
# What the operating system says of a file that the user should look at; the rest, such as a full disk, is a failed run.
USER_ERRNOS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
LONGEST = 500  # characters of a failure on one line


def _version(asked: bool) -> None:
    if asked:
        print(f"hcpdiff {hcpdiff.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one without files of these names.")]) -> None:
    """Make a folder with starter configs and example data. Nothing is overwritten."""
    from hcpdiff.project import create

    for path in create(folder):
        print(path)
    print(f"now: cd {folder} && hcpdiff train --cfg cfgs/lora.yaml")


@app.command()
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


@app.command()
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


@app.command()
def check(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Find all mistakes of a config. Keys, types, values, paths and layer selectors are looked at; nothing is run."""
    from hcpdiff.config import ConfigError, load
    from hcpdiff.config import check as find_mistakes

    config = load(cfg, overrides or (), trust or ())
    if mistakes := find_mistakes(config, selectors=True):
        raise ConfigError(mistakes)
    print(f"{cfg}: no mistakes")


@app.command()
def show(cfg: Cfg, overrides: Overrides = None) -> None:
    """Show the composed config, and where each value came from."""
    from hcpdiff.config import ConfigError, leaves, load

    config = load(cfg, overrides or ())
    rows = [(f"{key}: {value}", str(origin)) for key, value, origin in leaves(config)]
    width = min(max((len(text) for text, _ in rows), default=0), 72)
    for text, origin in rows:
        print(f"{text:<{width}}  # {origin}")
    if config.mistakes:
        raise ConfigError(config.mistakes)


@app.command()
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


@app.command()
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


@app.command()
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


cache_app = typer.Typer(help="Look after the caches of a config on disk.", rich_markup_mode=None)
app.add_typer(cache_app, name="cache")


@cache_app.command("build")
def cache_build(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Fill the caches of a run, and train nothing."""
    from hcpdiff.train.cache_commands import fill

    for line in fill(cfg, overrides or (), trust=trust or ()):
        print(line)


@cache_app.command("stat")
def cache_stat(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Show what lies in the caches. By which models, how much, and when it was used."""
    from hcpdiff.train.cache_commands import stat

    for line in stat(cfg, overrides or (), trust=trust or ()):
        print(line)


@cache_app.command("verify")
def cache_verify(
    cfg: Cfg,
    overrides: Overrides = None,
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is damaged; a run computes it again.")] = False,
    trust: Trust = None,
) -> None:
    """Read every byte of the caches, and say what is damaged."""
    from hcpdiff.train.cache_commands import verify

    lines, sound = verify(cfg, overrides or (), repair=repair, trust=trust or ())
    print("\n".join(lines))
    if not sound:
        raise typer.Exit(1)


@cache_app.command("gc")
def cache_gc(
    cfg: Annotated[list[Path], typer.Option("--cfg", help="A config whose entries stay; may be given again.")],
    days: Annotated[
        float | None, typer.Option("--days", help="Instead, delete tables that no run has opened for so many days.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted.")] = False,
    trust: Trust = None,
) -> None:
    """Delete what none of the configs uses. From the cache folders that they name."""
    from hcpdiff.train.cache_commands import clean

    for line in clean(cfg, days=days, dry_run=dry_run, trust=trust or ()):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0; 2 for a mistake of the user; 1 when a run failed; 130 when interrupted.

    A mistake is told in one line, and without a traceback. HCPDIFF_DEBUG=1 shows the traceback of everything.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_AboveProgressBars()])
    logging.getLogger("hcpdiff").setLevel(logging.INFO)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    except KeyboardInterrupt as interrupt:
        return _told(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:  # `hcpdiff layers | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing more fails at exit
        return 1
    except Exception as error:
        if os.environ.get("HCPDIFF_DEBUG"):
            raise
        if _is_mistake(error):
            return _told(_mistake_text(error), 2)
        return _told(_failure_text(error), 1)


def _run(argv: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("hcpdiff", argv) as context:
            command.invoke(context)
    except typer.Exit as done:  # of --help
        return done.exit_code
    return 0


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno is None or error.errno in USER_ERRNOS
    return isinstance(error, (ValueError, UsageError))


def _mistake_text(error: Exception) -> str:
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "hcpdiff"
        text = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
        return f"{command}: {text}" + ("" if text.endswith("?") else f"; see {command} --help")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not UTF-8: {error}"
    return str(error)


def _failure_text(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[:LONGEST] + "..."
    notes = getattr(error, "__notes__", None) or ["HCPDIFF_DEBUG=1 shows the traceback"]
    return "; ".join([f"failed: {type(error).__name__}: {text}", *notes])


def _told(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


class _AboveProgressBars(logging.Handler):
    """Writes a line to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
