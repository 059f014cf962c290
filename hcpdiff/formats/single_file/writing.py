"""Writing a model as one file, in the layout of its original code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hcpdiff.formats.single_file.layouts import LAYOUTS, Layout
from hcpdiff.formats.single_file.table import originals


def save(family: Any, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a family's model as one safetensors file, which other programs read and `from_pretrained` as well.

    Tokenizers have no place in it, nor has the scheduler, but for a mark of v-prediction and of zero terminal SNR.

    Args:
        dtype: of all weights; None leaves each as it is.

    Raises:
        ValueError: the path does not end in .safetensors, the model has no such layout, or plugins stand in it.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a single file is written as .safetensors")
    layout, state = layout_of(family), {}
    for part in layout.parts.values():
        module = _submodule(family, part.path)
        if module is None:
            continue
        if any(getattr(type(layer), "wraps", False) for layer in module.modules()):
            raise ValueError(f"{part.path}: plugins stand in the place of its layers; detach or merge them first")
        tensors: Mapping[str, Tensor] = module.state_dict()
        table = part.table({key: tuple(tensor.shape) for key, tensor in tensors.items()})
        for key, tensor in originals(table, tensors):
            state[part.prefixes[0] + key] = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
    scheduler = getattr(family, "scheduler", {})
    if layout.name == "sdxl" and scheduler.get("prediction_type") == "v_prediction":
        state["v_pred"] = torch.zeros(0)
    if layout.name == "sdxl" and scheduler.get("rescale_betas_zero_snr"):
        state["ztsnr"] = torch.zeros(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def layout_of(family: Any) -> Layout:
    """The layout that a family's model is written in."""
    denoiser = family.denoiser
    if family.architecture == "sd":
        return LAYOUTS["sd1" if family.text_encoders["clip"].config.hidden_act == "quick_gelu" else "sd2"]
    if family.architecture == "sdxl":
        return LAYOUTS["sdxl"]
    if family.architecture == "sd3":
        new = "sd3.5-medium" if denoiser.config.dual_attention_layers else "sd3.5-large"
        return LAYOUTS[new if denoiser.config.qk_norm else "sd3-medium"]
    if family.architecture == "flux":
        return LAYOUTS["flux-dev" if denoiser.config.guidance_embeds else "flux-schnell"]
    raise ValueError(f"{family.architecture}: there is no single file of this family; save a folder")


def _submodule(family: nn.Module, path: str) -> nn.Module | None:
    names = path.split(".")
    module: Any = family
    for name in names:
        if isinstance(module, nn.ModuleDict):
            if name not in module:
                return None
            module = module[name]
        else:
            module = getattr(module, name)
    return module
