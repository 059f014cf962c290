"""LoRA as PEFT saves one part of a model: a folder with adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hcpdiff.formats import diffusers
from hcpdiff.formats.changes import AnyChange, Changes
from hcpdiff.formats.dora import with_alpha
from hcpdiff.formats.lora_files import listing, write_tensors
from hcpdiff.formats.names import Architecture, canonical, part_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def write(folder: Path, updates: Changes, arch: Architecture) -> list[Path]:
    """Write a folder per part; that of the denoiser is `folder` itself, unless there are others.

    Raises:
        ValueError: a layer is in no part of the architecture.
    """
    parts: dict[str, dict[str, AnyChange]] = {}
    for layer, update in updates.items():
        found = part_of(canonical(layer), arch.folders)
        if found is None:
            raise ValueError(f"peft: {listing([layer])} is in no part of {arch.name}")
        parts.setdefault(arch.folders[found[0]], {})[found[1]] = update
    alone = list(parts) == [arch.folders["denoiser"]]
    return [_write_part(folder if alone else folder / name, own) for name, own in parts.items()]


def _write_part(folder: Path, updates: Changes) -> Path:
    tensors, _ = diffusers.write_named({PREFIX + path: update for path, update in updates.items()})
    config = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "inference_mode": True}
    config |= {"base_model_name_or_path": None, "task_type": None, "lora_dropout": 0.0, "use_rslora": False}
    config |= diffusers.peft_config(updates)
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def weights_in(folder: Path) -> list[Path]:
    """The weights of a folder that PEFT or `write` wrote."""
    return sorted([*folder.glob(WEIGHTS), *folder.glob(f"*/{WEIGHTS}")])


def config_of(weights: Path) -> dict[str, Any]:
    """The LoraConfig beside a file with weights.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another kind of adapter.
    """
    file = weights.with_name(CONFIG)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: it says alpha, so it is needed beside {WEIGHTS}")
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{file}: this adapter is {config['peft_type']}; only LoRA and DoRA are read")
    return config


def with_alphas(modules: Changes, config: Mapping[str, Any]) -> dict[str, AnyChange]:
    """Modules by the names of the file, with the alphas of the config."""
    return {
        name: with_alpha(change, diffusers.peft_alpha(config, name.removeprefix(PREFIX), change.rank))
        for name, change in modules.items()
    }
