"""Writing a model as one file, in the layout of its original code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.formats.single_file.layouts import LAYOUTS, Layout, Part
from hcpdiff.formats.single_file.reading import MARKS, Model
from hcpdiff.formats.single_file.table import originals
from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.formats.tensor_files.writing import cast, given, write


def save(family: Any, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a family's model as one safetensors file, which other programs read and `from_pretrained` as well.

    Of a layer in whose place a plugin stands, the layer is written. Tokenizers have no place in it, nor has the
    scheduler, but for a mark of v-prediction and of zero terminal SNR.

    Args:
        dtype: of all weights; None leaves each as it is.

    Raises:
        ValueError: the path does not end in .safetensors, or the model has no such layout.
    """
    path = _checked(path)
    tensors: dict[str, Given] = {}
    for part in (layout := layout_of(family)).parts.values():
        if (module := _submodule(family, part.path)) is not None:
            tensors |= {part.prefixes[0] + key: tensor for key, tensor in _originals(part, module).items()}
    scheduler = getattr(family, "scheduler", {})
    marks = [mark for mark, (name, value) in MARKS.items() if scheduler.get(name) == value]
    if layout.name == "sdxl":
        tensors |= given({mark: torch.zeros(0) for mark in marks})
    write(path, cast(tensors, dtype))


def rewrite(model: Model, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the parts of a single file to another one: what else lay in it, such as an optimizer's state, is left out.

    Args:
        dtype: of all weights; None leaves each as it is.

    Raises:
        ValueError: the path does not end in .safetensors.
    """
    write(_checked(path), cast(model.tensors(), dtype))


def _checked(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a single file is written as .safetensors")
    return path


def _originals(part: Part, module: nn.Module) -> dict[str, Given]:
    """The tensors of a part as the file has them."""
    tensors = module.state_dict()
    table = part.table({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    meta = originals(table, {key: tensor.to("meta") for key, tensor in tensors.items()})
    return {key: _given(meta[key](), make) for key, make in originals(table, tensors).items()}


def _given(like: Tensor, make: Callable[[], Tensor]) -> Given:
    return Given(like.dtype, tuple(like.shape), make)


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
