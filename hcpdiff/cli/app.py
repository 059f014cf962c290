"""The program and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

import hcpdiff
from hcpdiff.cli import cache, files, runs

COMMANDS = (
    *(runs.init, runs.train, runs.infer, runs.check, runs.show, runs.layers, runs.data),
    *(files.convert, files.merge, files.extract, files.resize, files.inspect),
)


def _version(asked: bool) -> None:
    if asked:
        print(f"hcpdiff {hcpdiff.__version__}")
        raise typer.Exit()


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


app = typer.Typer(
    callback=_options,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune diffusion models from a short YAML file, and make pictures with them.",
    rich_markup_mode=None,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(cache.app, name="cache")
