"""What a user takes away from a run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hcpdiff.formats import contract, metadata, single_file, word_files
from hcpdiff.formats.changes import AnyChange
from hcpdiff.formats.names import Architecture
from hcpdiff.formats.tensor_files.dtypes import as_dtype
from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins import packing, weights
from hcpdiff.plugins.controlnet import ControlNet
from hcpdiff.train import provenance
from hcpdiff.train.settings import ExportSettings, TrainSettings

if TYPE_CHECKING:
    from hcpdiff.models.pretrained import PretrainedFamily
    from hcpdiff.train.trainer import Trainer

MODEL = "model"  # what is written of it is called so

log = logging.getLogger("hcpdiff.train")


def export(trainer: Trainer) -> list[Path]:
    """Write every plugin and trained word to <name>.safetensors, and the model if layers of its own were trained."""
    written, run = [], provenance.of_run(trainer)
    for name in trainer.plugins.specs:
        path = trainer.folder / f"{name}.safetensors"
        about = {**_about(trainer, name), **provenance.of_plugin(trainer, name), **run}
        weights.save(trainer.plugins, name, path, about)
        written.append(path)
    for word in trainer.words.trained:
        path, vectors = trainer.folder / f"{word}.safetensors", {word: trainer.words.of(word)}
        about = {**provenance.of_model(trainer, "textual-inversion", word), **run}
        written += word_files.write(vectors, path, "kohya", about)
    if trainer.finetune:
        written += _export_model(trainer.family, trainer.folder, trainer.settings.export or ExportSettings())
    for path in written:
        log.info("wrote %s", path)
        if (name := path.stem) in trainer.plugins.specs and path.suffix:
            _report(trainer, name, path)
        elif name in trainer.words.names:
            log.info("%s loads in: %s", path.name, _readers(trainer, name))
    return written


def check(family: ModelFamily, settings: TrainSettings, **others: Collection[str]) -> None:
    """Raise if the model cannot be written as the settings say, which else would show at the end of a run.

    Args:
        others: names of what is written besides, by section.
    """
    if settings.export is not None and settings.export.single_file:
        for section in (section for section, names in others.items() if MODEL in names):
            what = f"train.export.single_file writes {MODEL}.safetensors"
            raise ValueError(f"{section}.{MODEL}: {what}; use another name")
        try:
            single_file.layout_of(family)
        except ValueError as error:
            raise ValueError(f"train.export.single_file: {error}") from error


def _export_model(family: ModelFamily, folder: Path, how: ExportSettings) -> list[Path]:
    if not how.single_file:
        family.save_pretrained(folder / MODEL, dtype=how.dtype, shard_size=how.shard_size)
        return [folder / MODEL]
    cast("PretrainedFamily", family).save_pretrained(folder / MODEL, weights=False)
    single_file.save(family, folder / f"{MODEL}.safetensors", dtype=how.dtype and as_dtype(how.dtype))
    return [folder / f"{MODEL}.safetensors", folder / MODEL]


def _about(trainer: Trainer, name: str) -> dict[str, str]:
    """What other programs want to know of a plugin of a kind that they know."""
    arch, updates = _lora(trainer, name)
    if arch is not None and updates is not None:
        return {**metadata.network(updates), **provenance.of_model(trainer, "lora", name)}
    if issubclass(trainer.plugins.specs[name].plugin, ControlNet):
        return provenance.of_model(trainer, "controlnet", name)
    return {}


def _report(trainer: Trainer, name: str, path: Path) -> None:
    """Log where else the file of a LoRA loads."""
    arch, updates = _lora(trainer, name)
    if arch is not None and updates is not None:
        own = [a for a in trainer.plugins.attachments if a.name == name]
        before = {a.path: a.targets[0].layer.get_parameter("weight") for a in own}
        branch = trainer.plugins.specs[name].branch
        results = contract.check(path, updates, arch.name, branch=branch, weights=before)
        log.info("%s %s", path.name, contract.lines(results))


def _readers(trainer: Trainer, word: str) -> str:
    """Where the file of a word loads, and what it is called there."""
    encoders = trainer.words.of(word)
    comfy = f"ComfyUI (as embedding:{word})"
    if not encoders.keys() <= {"clip", "clip_l", "clip_g", "t5"}:
        return "no other program that is known"
    if list(encoders) == ["clip"]:
        return f"{comfy}, kohya, the web UI, diffusers (with token={word!r})"
    if trainer.family.architecture == "sdxl" and set(encoders) == {"clip_l", "clip_g"}:
        return f"{comfy}, kohya, the web UI; for diffusers, convert it, as that wants a file for each text encoder"
    return f"{comfy}; not known to load elsewhere with {', '.join(encoders)}"


def _lora(trainer: Trainer, name: str) -> tuple[Architecture | None, dict[str, AnyChange] | None]:
    return packing.architecture_of(trainer.family), packing.updates_of(trainer.plugins.plugins(name))
