"""What a user takes away from a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hcpdiff.formats import contract, metadata, word_files
from hcpdiff.formats.changes import AnyChange
from hcpdiff.formats.names import Architecture
from hcpdiff.plugins import packing, weights
from hcpdiff.plugins.controlnet import ControlNet
from hcpdiff.train import provenance

if TYPE_CHECKING:
    from hcpdiff.train.trainer import Trainer

log = logging.getLogger("hcpdiff.train")


def export(trainer: Trainer) -> list[Path]:
    """Write every plugin and trained word to <name>.safetensors, and to model/ the model if its layers were trained."""
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
        path = trainer.folder / "model"
        trainer.family.save_pretrained(path)
        written.append(path)
    for path in written:
        log.info("wrote %s", path)
        if (name := path.stem) in trainer.plugins.specs:
            _report(trainer, name, path)
        elif name in trainer.words.names:
            log.info("%s loads in: %s", path.name, _readers(trainer, name))
    return written


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
