"""`hcpdiff infer`: from a config to pictures on disk."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hcpdiff.config import build, load, require
from hcpdiff.infer.generate import Picture, generate
from hcpdiff.infer.request import InferSettings, Request
from hcpdiff.infer.save import contact_sheet, save_picture
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.weights import attach_files


def infer(
    cfg: str | Path, overrides: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None, trust: Sequence[str] = ()
) -> list[Picture]:
    """Make the pictures of a config's `infer` section, write them with a sheet of all, and return them.

    Args:
        overrides: `key=value` in Hydra's grammar.
        changes: values for keys of `infer` that are no text of that grammar, e.g. {"prompts": ["a cat, sitting"]}.
        trust: packages that targets may come from, besides the known ones.

    Raises:
        ConfigError: listing every mistake in the config.
    """
    config = load(cfg, overrides, trust)
    config.tree["infer"] = {**(config.get("infer") or {}), **(changes or {})}
    require(config, "model", "infer")
    settings: InferSettings = build(config, "infer")
    family = build(config, "model").to(_device()).eval()
    plugins = attach_files(family, {name: (a.path, 1.0) for name, a in settings.adapters.items()}, trust=trust)
    pictures, labels = [], []
    sweeps = list(itertools.product(*(a.strengths() for a in settings.adapters.values())))
    with tqdm(total=len(settings.pictures()) * len(sweeps), desc="infer", unit="image", dynamic_ncols=True) as bar:
        for strengths in sweeps:
            pictures.append(_with_strengths(family, plugins, settings, strengths, bar.update))
            labels.append(", ".join(f"{n} {s:g}" for n, s in zip(settings.adapters, strengths, strict=True)))
    return _write(settings, pictures, labels, sweeps)


def _with_strengths(
    family: Any, plugins: PluginGroup, settings: InferSettings, strengths: Sequence[float], on_picture: Any
) -> list[Picture]:
    for name, strength in zip(settings.adapters, strengths, strict=True):
        plugins.set_strength(name, strength)
    return generate(family, settings, plugins=plugins, on_picture=on_picture)


def _write(
    settings: InferSettings, rows: list[list[Picture]], labels: list[str], sweeps: list[tuple[float, ...]]
) -> list[Picture]:
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    number, written = _next_number(out), []
    for row, strengths in zip(rows, sweeps, strict=True):
        used = {n: {"path": a.path, "strength": s} for (n, a), s in zip(settings.adapters.items(), strengths, strict=True)}
        for picture in row:
            path = out / f"{number:05d}-{picture.seed}.png"
            save_picture(picture, path, _plain(settings) | {"adapters": used})
            written.append(replace(picture, path=path))
            number += 1
    contact_sheet(rows, labels if settings.adapters else None).save(out / "sheet.png")
    return written


def _plain(settings: InferSettings) -> dict[str, Any]:
    """The settings of a request that a file can hold."""
    values = {f.name: getattr(settings, f.name) for f in fields(Request) if f.name != "prompts"}
    return {name: _named(value) if callable(value) else value for name, value in values.items() if value is not None}


def _named(function: Any) -> str:
    inner = getattr(function, "func", function)
    return f"{inner.__module__}.{inner.__qualname__}"


def _next_number(folder: Path) -> int:
    """Pictures of an earlier call are not overwritten."""
    taken = [int(p.name.split("-")[0]) for p in folder.glob("[0-9]*-*.png") if p.name.split("-")[0].isdigit()]
    return max(taken, default=-1) + 1


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
