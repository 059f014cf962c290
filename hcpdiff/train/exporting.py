"""What a user takes away from a run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from hcpdiff.formats import contract, metadata, single_file
from hcpdiff.formats.lora_files import Update
from hcpdiff.formats.names import Architecture
from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins import packing, weights
from hcpdiff.train.settings import ExportSettings, TrainSettings

if TYPE_CHECKING:
    from hcpdiff.models.pretrained import PretrainedFamily
    from hcpdiff.train.trainer import Trainer

MODEL = "model"  # what is written of it is called so

log = logging.getLogger("hcpdiff.train")


def export(trainer: Trainer) -> list[Path]:
    """Write every plugin to <name>.safetensors, and the model if layers of its own were trained."""
    written = []
    for name in trainer.plugins.specs:
        path = trainer.folder / f"{name}.safetensors"
        own = {**trainer.metadata, "hcpdiff.step": str(trainer.step)}
        weights.save(trainer.plugins, name, path, {**_about(trainer, name), **own})
        written.append(path)
    if trainer.finetune:
        written += _export_model(trainer.family, trainer.folder, trainer.settings.export or ExportSettings())
    for path in written:
        log.info("wrote %s", path)
        if (name := path.stem) in trainer.plugins.specs and path.suffix:
            _report(trainer, name, path)
    return written


def check(family: ModelFamily, plugins: Collection[str], settings: TrainSettings) -> None:
    """Raise if the model cannot be written as the settings say, which else would show at the end of a run."""
    if settings.export is not None and settings.export.single_file:
        if MODEL in plugins:
            raise ValueError(f"plugins.{MODEL}: train.export.single_file writes {MODEL}.safetensors; use another name")
        try:
            single_file.layout_of(family)
        except ValueError as error:
            raise ValueError(f"train.export.single_file: {error}") from error


def _export_model(family: ModelFamily, folder: Path, how: ExportSettings) -> list[Path]:
    if not how.single_file:
        family.save_pretrained(folder / MODEL, dtype=how.dtype, shard_size=how.shard_size)
        return [folder / MODEL]
    cast("PretrainedFamily", family).save_pretrained(folder / MODEL, weights=False)
    single_file.save(family, folder / f"{MODEL}.safetensors", dtype=how.dtype and getattr(torch, how.dtype))
    return [folder / f"{MODEL}.safetensors", folder / MODEL]


def _about(trainer: Trainer, name: str) -> dict[str, str]:
    """What other programs want to know of a LoRA."""
    arch, updates = _lora(trainer, name)
    if arch is None or updates is None:
        return {}
    config, prediction = trainer.family.denoiser.config, getattr(trainer.family.process, "prediction", None)
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(cast("Any", config))
    variant = metadata.variant(arch.name, values, str(prediction))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return metadata.metadata(updates, variant, title=name, date=date, prediction=prediction)


def _report(trainer: Trainer, name: str, path: Path) -> None:
    """Log where else the file of a LoRA loads."""
    arch, updates = _lora(trainer, name)
    if arch is not None and updates is not None:
        results = contract.check(path, updates, arch.name, branch=trainer.plugins.specs[name].branch)
        log.info("%s %s", path.name, contract.lines(results))


def _lora(trainer: Trainer, name: str) -> tuple[Architecture | None, dict[str, Update] | None]:
    return packing.architecture_of(trainer.family), packing.updates_of(trainer.plugins.plugins(name))
