"""LoRA as kohya's sd-scripts write it: flattened names, `lora_down`, `lora_up` and an alpha beside each pair.

SD3's and FLUX's layers are those of the original code, where q, k and v are one. Z-Image's and Qwen-Image's are
those of diffusers, as musubi-tuner writes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hcpdiff.formats import dit_names
from hcpdiff.formats.lora_files import Update, Updates, fuse, listing, swapped, with_one_alpha
from hcpdiff.formats.names import Architecture, canonical, to_kohya


def write(updates: Updates, arch: Architecture) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: listing the layers that have no name there, or a bias, which the form cannot hold.
    """
    modules, lost = _modules(updates, arch)
    lost += [layer for layer, update in updates.items() if update.bias is not None]
    if lost:
        raise ValueError(f"kohya: {len(lost)} of {len(updates)} layers have no place in such a file: {listing(lost)}")
    if arch.unet:
        modules = with_one_alpha(modules)
    tensors: dict[str, Tensor] = {}
    for name, update in modules.items():
        tensors[f"{name}.alpha"] = torch.tensor(float(update.rank if update.alpha is None else update.alpha))
        tensors[f"{name}.lora_down.weight"] = update.down
        tensors[f"{name}.lora_up.weight"] = update.up
        if update.mid is not None:
            tensors[f"{name}.lora_mid.weight"] = update.mid
    return tensors


def _modules(updates: Updates, arch: Architecture) -> tuple[dict[str, Update], list[str]]:
    """{name: update} with fused layers joined, and the layers without a name or with one that another layer has."""
    modules: dict[str, Update] = {}
    owners: dict[str, tuple[str, ...]] = {}
    given = {canonical(layer): (layer, update) for layer, update in updates.items()}
    lost: list[str] = []
    for layer, (own, update) in given.items():
        known = to_kohya(arch, layer)
        if known is None or owners.get(known[0], known[1].layers) != known[1].layers:
            lost.append(own)
            continue
        name, original = known
        if name in owners:
            continue
        owners[name] = original.layers
        if original.fused:
            parts = [given[path][1] if path in given else None for path in original.layers]
            modules[name] = fuse(parts, original.shares)
        elif swaps(arch, layer, update):
            modules[name] = swapped(update)
        else:
            modules[name] = update
    return modules, lost


def swaps(arch: Architecture, layer: str, update: Update) -> bool:
    """Whether the original code has this layer's halves the other way round."""
    path = layer.removeprefix("denoiser.")
    return arch.table is not None and dit_names.swaps_halves(path, len(update.up), update.down.shape[1])
