"""Tiny models on disk, as folders and as single files, and LoRAs for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hcpdiff.formats import single_file
from hcpdiff.plugins import LoRA, PluginSpec
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.weights import save
from tests.formats.single_models import MODELS

FAMILIES = ("sd1", "sdxl", "sd3-medium", "flux-dev")
_KEPT: list[TemporaryDirectory[str]] = []  # removed when the tests end


@cache
def model(name: str) -> Path:
    """A folder with `folder/` and `file.safetensors` of the same weights; do not write there."""
    _KEPT.append(TemporaryDirectory())
    root, (kind, pipeline) = Path(_KEPT[-1].name), MODELS[name]
    pipeline().save_pretrained(root / "saved")
    family = kind.from_pretrained(root / "saved")
    family.save_pretrained(root / "folder")
    single_file.save(family, root / "file.safetensors")
    return root


def family(name: str, path: Path, **options: Any) -> Any:
    return MODELS[name][0].from_pretrained(path, **options)


def other(name: str, path: Path, change: Callable[[Any], None] | None = None) -> Path:
    """Another model of this kind, with all weights moved a little, or changed otherwise."""
    live = family(name, model(name) / "folder")
    torch.manual_seed(1)
    with torch.no_grad():
        if change is not None:
            change(live)
        else:
            for parameter in live.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    if path.suffix:
        single_file.save(live, path)
    else:
        live.save_pretrained(path)
    return path


def lora(name: str, path: Path, *, rank: int = 3, on: Any = ("denoiser", "text_encoders")) -> Path:
    """A LoRA on all layers of these parts that it can work on."""
    return save_lora(family(name, model(name) / "folder"), path, on=on, layers=["re:.*"], rank=rank)


def save_lora(live: Any, path: Path, *, on: Any, layers: list[str], rank: int) -> Path:
    """A LoRA with random weights and an alpha of 2."""
    group = attach(live, {"style": PluginSpec(LoRA, on=on, layers=layers, options={"rank": rank, "alpha": 2.0})})
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in group.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    save(group, "style", path)
    return path
