"""`hcpdiff infer`: from a config to pictures on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hcpdiff.config import build, load, require
from hcpdiff.formats.word_files import holds_bundle
from hcpdiff.infer.generation import Picture, check_size, generate, guidance_of
from hcpdiff.infer.request import InferSettings, Request
from hcpdiff.infer.save import contact_sheet, save_picture, write_image
from hcpdiff.models.family import ModelFamily
from hcpdiff.models.text.words import Words, load_words
from hcpdiff.models.weights import onto
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.weights import attach_files


def infer(
    cfg: str | Path,
    overrides: Sequence[str] = (),
    *,
    changes: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> list[Picture]:
    """Make the pictures of a config's `infer` section, write them with a sheet of all, and return them.

    Pictures are called <number>-<seed>.png; the numbers go on after those in the folder, so none is overwritten.

    Args:
        overrides: `key=value` in Hydra's grammar.
        changes: values for keys of `infer` that are no text of that grammar, e.g. {"prompts": ["a cat, sitting"]}.
        trust: packages that targets may come from, besides the known ones.

    Raises:
        ConfigError: listing every mistake in the config.
    """
    config = load(cfg, overrides, trust)
    config.change("infer", changes or {})
    require(config, "model", "infer")
    settings: InferSettings = build(config, "infer")
    with onto(_device()):
        family: ModelFamily = build(config, "model").to(_device()).eval()
    check_size(family, settings.size, where="infer.size")
    plugins = attach_files(family, {name: (a.path, 1.0) for name, a in settings.adapters.items()}, trust=trust)
    attach_words(family, settings)
    sweeps, out = settings.sweeps(), Path(settings.out).expanduser()
    numbers = itertools.count(_next_number(out))
    with tqdm(total=len(settings.pictures()) * len(sweeps), desc="infer", unit="image", dynamic_ncols=True) as bar:
        rows = [_row(family, plugins, settings, strengths, numbers, bar) for strengths in sweeps]
    labels = [", ".join(f"{name} {strength:g}" for name, strength in strengths.items()) for strengths in sweeps]
    write_image(contact_sheet(rows, labels if settings.adapters else None), out / "sheet.png")
    return [picture for row in rows for picture in row]


def attach_words(family: ModelFamily, settings: InferSettings) -> Words:
    """The words of a request and those within its adapters' files, attached; of one name, the request's own.

    Raises:
        ValueError: two adapters have a word of one name, or a file has no words for this model.
    """
    own = load_words(family, settings.words)
    vectors = {word.lower(): (word, own.of(word)) for word in own.names}
    sources = dict.fromkeys(vectors, "infer.words")
    for name, adapter in settings.adapters.items():
        path = Path(adapter.path).expanduser()
        bundled = load_words(family, path) if holds_bundle(path) else Words(family, {})
        for word in bundled.names:
            source = sources.setdefault(word.lower(), where := f"infer.adapters.{name}")
            if source not in (where, "infer.words"):
                raise ValueError(
                    f"{where}: its file has the word {word!r}, and so has that of {source}; say which is meant: "
                    f"infer.words: {{{word}: {path}}}"
                )
            vectors.setdefault(word.lower(), (word, bundled.of(word)))
    return Words(family, dict(vectors.values())).attach()


def _row(
    family: ModelFamily,
    plugins: PluginGroup,
    settings: InferSettings,
    strengths: Mapping[str, float],
    numbers: Iterator[int],
    bar: tqdm,
) -> list[Picture]:
    """All pictures of the request with the adapters at these strengths, each in its file as soon as it is finished."""
    for name, strength in strengths.items():
        plugins.set_strength(name, strength)
    used = {name: {"path": settings.adapters[name].path, "strength": value} for name, value in strengths.items()}
    values = _plain(settings) | {"guidance": guidance_of(settings, family), "adapters": used, "words": settings.words}
    written: list[Picture] = []

    def write(pictures: list[Picture]) -> None:
        for picture in pictures:
            path = Path(settings.out).expanduser() / f"{next(numbers):05d}-{picture.seed}.png"
            save_picture(picture, path, values)
            written.append(replace(picture, path=path))
        bar.update(len(pictures))

    generate(family, settings, plugins=plugins, on_pictures=write)
    return written


def _plain(settings: InferSettings) -> dict[str, Any]:
    """The settings of a request that a file can hold."""
    values = {f.name: getattr(settings, f.name) for f in fields(Request) if f.name != "prompts"}
    return {name: _named(value) if callable(value) else value for name, value in values.items() if value is not None}


def _named(function: Any) -> str:
    inner = getattr(function, "func", function)
    return f"{inner.__module__}.{inner.__qualname__}"


def _next_number(folder: Path) -> int:
    """The first number after those of earlier calls."""
    taken = [int(p.name.split("-")[0]) for p in folder.glob("[0-9]*-*.png") if p.name.split("-")[0].isdigit()]
    return max(taken, default=-1) + 1


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
