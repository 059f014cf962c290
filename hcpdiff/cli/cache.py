"""Commands that look after caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hcpdiff.cli.options import Cfg, Overrides, Trust

app = typer.Typer(help="Look after the caches of a config on disk.", rich_markup_mode=None)


@app.command("build")
def cache_build(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Fill the caches of a run, and train nothing."""
    from hcpdiff.train.cache_commands import fill

    for line in fill(cfg, overrides or (), trust=trust or ()):
        print(line)


@app.command("stat")
def cache_stat(cfg: Cfg, overrides: Overrides = None, trust: Trust = None) -> None:
    """Show what lies in the caches. By which models, how much, and when it was used."""
    from hcpdiff.train.cache_commands import stat

    for line in stat(cfg, overrides or (), trust=trust or ()):
        print(line)


@app.command("verify")
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


@app.command("gc")
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
