"""`hcpdiff cache`: fill the caches of a run without training, and look after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from hcpdiff.config import Config, build, load, require
from hcpdiff.data.cache import Key
from hcpdiff.data.cache.conditioning import CachedText
from hcpdiff.data.cache.latents import CachedLatents
from hcpdiff.data.cache.maintenance import collect, damaged, size_text, tables
from hcpdiff.data.dataset import Dataset
from hcpdiff.plugins.attach import attach
from hcpdiff.train import caching
from hcpdiff.train.objective import Objective
from hcpdiff.train.parameters import parameter_groups
from hcpdiff.train.precision import make_accelerator
from hcpdiff.train.words import attach_words, word_groups


def fill(cfg: str | Path, overrides: Sequence[str] = (), *, trust: Sequence[str] = ()) -> Iterator[str]:
    """Lines about the caches of a config's run, which are filled; nothing is trained.

    Raises:
        ConfigError: listing every mistake in the config.
        ValueError: the config keeps no cache on disk, or caches what the run changes.
    """
    config = load(cfg, overrides, trust)
    require(config, "model", "data", "train")
    objective, datasets = _run(config)
    if not any("disk" in (dataset.cache_latents, dataset.cache_text) for dataset in datasets.values()):
        raise ValueError(f"{cfg}: no dataset keeps a cache on disk; set data.NAME.cache_latents or cache_text to disk")
    settings = build(config, "train")
    accelerator = make_accelerator(settings.precision)
    for dataset in datasets.values():
        dataset.cache_latents = dataset.cache_latents if dataset.cache_latents == "disk" else False
        dataset.cache_text = dataset.cache_text if dataset.cache_text == "disk" else False
    caching.fill(
        objective,
        datasets,
        seed=config.get("seed", 0),
        workers=settings.workers,
        quiet=not accelerator.is_main_process,
        device=accelerator.device,
        team=caching.team_of(accelerator),
    )
    for dataset in datasets.values():
        for cached in (dataset.latents, dataset.text):
            if cached is not None:
                cached.table.close()
    yield from stat(cfg, overrides, trust=trust)


def stat(cfg: str | Path, overrides: Sequence[str] = (), *, trust: Sequence[str] = ()) -> Iterator[str]:
    """Lines about what lies in the caches of a config."""
    for folder in _folders(load(cfg, overrides, trust)):
        found = tables(folder)
        total = size_text(sum(table.nbytes for table in found))
        yield f"{folder}: {len(found)} tables, {sum(table.rows for table in found):,} entries, {total}"
        yield from (f"  {table}" for table in found)


def verify(
    cfg: str | Path, overrides: Sequence[str] = (), *, repair: bool = False, trust: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """Read every byte of the caches of a config: (lines about it, whether all is sound now).

    Args:
        repair: remove what is damaged; the next run computes it again.
    """
    lines, sound = [], True
    for folder in _folders(load(cfg, overrides, trust)):
        bad = damaged(folder, repair=repair)
        lines += [f"{path}: damaged{'; removed' if repair else ''}" for path in bad]
        what = f"damaged files: {len(bad)}" if bad else "all sound"
        advice = "" if repair or not bad else "; --repair removes them, and the next run computes them again"
        lines.append(f"{folder}: {what}{advice}")
        sound = sound and (repair or not bad)
    return lines, sound


def clean(
    cfgs: Sequence[str | Path], *, days: float | None = None, dry_run: bool = False, trust: Sequence[str] = ()
) -> Iterator[str]:
    """Delete from the caches of some configs what none of them uses; lines about it.

    Args:
        days: instead, delete the tables that no run has opened for so many days; the models are not looked at.
        dry_run: only tell what would be deleted.
    """
    configs = [load(cfg, (), trust) for cfg in cfgs]
    keep: dict[Path, set[Key]] | None = None
    if days is None:
        keep = {}
        for config in configs:
            require(config, "model", "data", "train")
            for path, keys in _used(config):
                keep.setdefault(path.resolve(), set()).update(keys)
    for folder in dict.fromkeys(folder.resolve() for config in configs for folder in _folders(config)):
        freed, busy = collect(folder, keep, days=days or 0.0, dry_run=dry_run)
        yield from (f"{part}" for part in freed)
        yield from (f"{path.parent.name}/{path.name[:8]}: in use, so it stays" for path in busy)
        done = "would be freed" if dry_run else "freed"
        yield f"{folder}: {size_text(sum(part.nbytes for part in freed))} {done}"


def _run(config: Config) -> tuple[Objective, dict[str, Dataset]]:
    """What a training run would have, without its optimizer."""
    seed = config.get("seed", 0)
    family = build(config, "model")
    plugins = attach(family, build(config, "plugins") if config.get("plugins") else {}, seed=seed)
    specs = build(config, "words") if config.get("words") else {}
    words = attach_words(family, specs, seed=seed)
    finetune = build(config, "finetune") if config.get("finetune") else ()
    parameter_groups(family, plugins, finetune, word_groups(words, specs))
    objective = Objective.from_settings(family, plugins, build(config, "train"), seed=seed, words=words)
    return objective, dict(build(config, "data"))


def _used(config: Config) -> Iterator[tuple[Path, set[Key]]]:
    """The tables on disk that a run uses, and the keys of the entries that it uses of them."""
    objective, datasets = _run(config)
    caching.prepare(objective, datasets, seed=config.get("seed", 0))
    encoders = caching.Encoders(objective, next(objective.family.parameters()).device)
    for dataset in datasets.values():
        if dataset.cache_latents == "disk":
            latents = CachedLatents(dataset.samples, dataset.cache_dir, encoders.key("vae", "disk"))
            yield _folder(latents), latents.keys
        prompts = dataset.samples.all_prompts() if dataset.cache_text == "disk" else None
        if prompts is not None:
            key = encoders.key("text_encoders", "disk")
            text = CachedText(dataset.cache_dir, key, negatives=encoders.negatives)
            yield _folder(text), text.keys(prompts)


def _folder(cached: CachedLatents | CachedText) -> Path:
    """Of the table, which is closed."""
    cached.table.close()
    assert cached.table.folder is not None
    return cached.table.folder


def _folders(config: Mapping[str, Any]) -> list[Path]:
    """Where the datasets of a config keep their caches."""
    default = signature(Dataset).parameters["cache_dir"].default
    data = config.get("data") or {}
    folders = [Path(dataset.get("cache_dir", default)).expanduser() for dataset in data.values()]
    return list(dict.fromkeys(folders))
