"""What a user takes away from a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hcpdiff.plugins import weights

if TYPE_CHECKING:
    from hcpdiff.train.trainer import Trainer

log = logging.getLogger("hcpdiff.train")


def export(trainer: Trainer) -> list[Path]:
    """Write every plugin to <name>.safetensors, and the model to model/ if layers of its own were trained."""
    written = []
    for name in trainer.plugins.specs:
        path = trainer.folder / f"{name}.safetensors"
        weights.save(trainer.plugins, name, path, {**trainer.metadata, "hcpdiff.step": str(trainer.step)})
        written.append(path)
    if trainer.finetune:
        path = trainer.folder / "model"
        trainer.family.save_pretrained(path)
        written.append(path)
    for path in written:
        log.info("wrote %s", path)
    return written
