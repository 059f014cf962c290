"""LoRA as kohya's sd-scripts write it, and LyCORIS its forms: flattened names, `lora_down`, `lora_up` and the like, and
an alpha beside them.

SD3's and FLUX's layers are those of the original code, where q, k and v are one. Z-Image's and Qwen-Image's are
those of diffusers, as musubi-tuner writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hcpdiff.formats import dit_names
from hcpdiff.formats.changes import Additive, AnyChange, Changes, mapped
from hcpdiff.formats.dit_names import Original
from hcpdiff.formats.dora import DoRA
from hcpdiff.formats.fused_changes import joined, swapped
from hcpdiff.formats.lora_files import Update, fuse, listing, with_one_alpha
from hcpdiff.formats.lycoris import Full, GLoRA, LoKr
from hcpdiff.formats.modules import taken_apart
from hcpdiff.formats.names import Architecture, canonical, find, part_of, to_kohya
from hcpdiff.formats.oft import OFT


def write(updates: Changes, arch: Architecture) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: listing the layers that have no name there, or a change that the form cannot hold, such as a bias.
    """
    modules, lost = _modules(updates, arch)
    if lost:
        raise ValueError(f"kohya: {len(lost)} of {len(updates)} layers have no place in such a file: {listing(lost)}")
    if arch.unet:
        modules |= with_one_alpha({name: update for name, update in modules.items() if isinstance(update, Update)})
    tensors: dict[str, Tensor] = {}
    for name, update in modules.items():
        tensors |= module_tensors(name, update)
    return tensors


def fits(updates: Changes, arch: Architecture) -> bool:
    """Whether `write` has a place for all of them."""
    return not _modules(updates, arch)[1]


def write_lycoris(updates: Changes, arch: Architecture) -> dict[str, Tensor]:
    """The same with what LyCORIS' own wrapper calls the denoiser's layers: `lycoris_` and diffusers' names, all apart.

    Raises:
        ValueError: listing the layers that have no name there, or a change that the form cannot hold.
    """
    named = {layer: _lycoris_name(layer, arch) for layer in updates}
    if lost := [layer for layer, name in named.items() if name is None or not holds(updates[layer])]:
        raise ValueError(f"lycoris: {len(lost)} of {len(updates)} layers have no place in such a file: {listing(lost)}")
    return {k: t for layer, name in named.items() for k, t in module_tensors(str(name), updates[layer]).items()}


def fits_lycoris(updates: Changes, arch: Architecture) -> bool:
    """Whether `write_lycoris` has a place for all of them."""
    return all(_lycoris_name(layer, arch) is not None and holds(update) for layer, update in updates.items())


def _lycoris_name(layer: str, arch: Architecture) -> str | None:
    layer = canonical(layer)
    part, path = part_of(layer, arch.folders) or ("", "")
    prefix = "lycoris" if part == "denoiser" else arch.kohya.get(part)
    name = f"{prefix}_{path.replace('.', '_')}"
    known = find(arch, name)
    return name if prefix and known and known.layers == (layer,) else None


def module_tensors(name: str, update: AnyChange) -> dict[str, Tensor]:
    """What LyCORIS and kohya's programs write for one module."""
    own, settings = taken_apart(update)
    inner = update.of if isinstance(update, DoRA) else update
    if isinstance(inner, Full) and inner.diff is not None and inner.diff.ndim == 1:  # a norm's
        own = {{"diff": "w_norm", "diff_b": "b_norm"}[key]: tensor for key, tensor in own.items()}
    if "alpha" in settings:
        usual = 0 if isinstance(inner, OFT) else update.rank or 1
        own = {"alpha": torch.tensor(float(settings["alpha"] or usual)), **own}
    if "on_input" in settings:
        own["on_input"] = torch.tensor(int(settings["on_input"]))
    return {f"{name}.{key}": tensor for key, tensor in own.items()}


def holds(update: AnyChange) -> bool:
    """Whether such files can hold this change: no LoRA with a bias, and no LoKr of which only some rows are meant."""
    if isinstance(update, DoRA):
        return holds(update.of)
    if isinstance(update, Update):
        return update.bias is None
    return not (isinstance(update, LoKr) and update.pieces)


def _modules(updates: Changes, arch: Architecture) -> tuple[dict[str, AnyChange], list[str]]:
    """{name: update} with fused layers joined, and the layers without a name or with one that another layer has, or
    with a change that is lost in the form."""
    modules: dict[str, AnyChange] = {}
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
        try:
            modules[name] = _module([given[path][1] if path in given else None for path in original.layers], original)
        except ValueError:
            lost += [given[path][0] for path in original.layers if path in given]
            continue
        if not original.fused and swaps(arch, layer, update):
            modules[name] = swapped(update)
        if not holds(modules[name]):
            lost.append(own)
    return modules, lost


def _module(parts: Sequence[AnyChange | None], original: Original) -> AnyChange:
    if not original.fused:
        assert parts[0] is not None
        return parts[0]
    if all(part is None or isinstance(part, Update) for part in parts):
        return fuse([part for part in parts if part is None or isinstance(part, Update)], original.shares)
    return joined(parts, original.shares)


def swaps(arch: Architecture, layer: str, update: AnyChange) -> bool:
    """Whether the original code has this layer's halves the other way round."""
    path = layer.removeprefix("denoiser.")
    return arch.table is not None and dit_names.swaps_halves(path, update.num_rows() or 0, _columns(update))


def _columns(update: AnyChange) -> int:
    """Of the weight of a linear layer; 0 where the change does not say it."""
    inner = update.of if isinstance(update, DoRA) else update
    if isinstance(inner, Update):
        return inner.down.shape[1]
    if isinstance(inner, Additive):
        return mapped(inner, lambda tensor: tensor.to("meta")).delta().shape[-1]
    return len(inner.a1) if isinstance(inner, GLoRA) else 0
