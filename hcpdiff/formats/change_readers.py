"""How other programs read a file with DoRA, LoHa or LoKr, written down apart from what reads and writes them here.

A reader gives what a program makes of a layer's weight, as a function of this; None where it does not read the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hcpdiff.formats import readers
from hcpdiff.formats.readers import File, Rows

Applied = Callable[[Tensor], Tensor]


def comfyui(file: File, layer: str, family: str) -> Applied | None:
    """A DoRA of rows is divided by the rows of the plain weight; PEFT's magnitudes are not looked at."""
    for name, rows in readers.comfyui_names(layer, family):
        if not _known(file, name):
            continue
        scale = file.tensors.get(f"{name}.dora_scale")
        return lambda weight, name=name, rows=rows, scale=scale: _comfyui_weight(
            weight, weight.float() + _delta(file, name, rows, weight), scale, rows
        )
    return None


def _comfyui_weight(weight: Tensor, changed: Tensor, scale: Tensor | None, rows: Rows) -> Tensor:
    if scale is None:
        return changed
    if len(scale) == 1:
        return changed * (scale.float() / _norm(changed, over_rows=False))
    return changed * (_cut(scale, rows).float() / _norm(weight, over_rows=True))


def kohya(file: File, layer: str, family: str) -> Applied | None:
    """It reads LoRA alone, and leaves out the magnitudes of a DoRA."""
    change = readers.kohya(file, layer, family)
    return None if change is None else lambda weight: weight.float() + _product(change, weight)


def lycoris(file: File, layer: str, family: str) -> Applied | None:
    """Within kohya's programs, and with names of its own; a DoRA is one of rows."""
    for name, rows in (readers.kohya_name(layer, family), (_wrapper_name(layer), None)):
        scale = file.tensors.get(f"{name}.dora_scale")
        if not _known(file, name) or (scale is not None and len(scale) == 1):
            continue
        return lambda weight, name=name, rows=rows, scale=scale: _with_rows(
            weight.float() + _delta(file, name, rows, weight), None if scale is None else _cut(scale, rows)
        )
    return None


def diffusers(file: File, layer: str, family: str) -> Applied | None:
    """It reads DoRA of rows in its own form; in kohya's it leaves out the magnitudes."""
    change = readers.diffusers(file, layer, family)
    if change is None:
        return None
    folder, path = readers.diffusers_name(layer, family)
    magnitude = file.tensors.get(f"{folder}.{path}.lora_magnitude_vector")
    return lambda weight: _with_rows(weight.float() + _product(change, weight), magnitude)


Reader = Callable[[File, str, str], Applied | None]
READERS: dict[str, Reader] = {"diffusers": diffusers, "ComfyUI": comfyui, "kohya": kohya, "LyCORIS": lycoris}


def of_family(family: str) -> dict[str, Reader]:
    """Those of which it is known whether they read files of this family. LyCORIS works within kohya's programs."""
    known = readers.READERS[family]
    return {name: read for name, read in READERS.items() if name in known or (name == "LyCORIS" and "kohya" in known)}


def _with_rows(changed: Tensor, magnitude: Tensor | None) -> Tensor:
    if magnitude is None:
        return changed
    norm = _norm(changed, over_rows=True)
    return changed * (magnitude.float().view(norm.shape) / norm)


def _known(file: File, name: str) -> bool:
    return name in file.pairs or any(f"{name}.{key}" in file.tensors for key in ("hada_w1_a", "lokr_w1", "lokr_w1_a"))


def _wrapper_name(layer: str) -> str:
    return f"lycoris_{layer.removeprefix('denoiser.').replace('.', '_')}"


def _delta(file: File, name: str, rows: Rows, weight: Tensor) -> Tensor:
    if name in file.pairs:
        change = file.change(name, file.alpha(name, len(file.pairs[name][0])), rows)
        assert change is not None
        return _product(change, weight)
    own = {key.removeprefix(f"{name}."): t.float() for key, t in file.tensors.items() if key.startswith(f"{name}.")}
    if "hada_w1_a" in own:
        rank = own["hada_w1_b"].shape[0]
        halves = [_half(own, f"hada_w{i}", f"hada_t{i}") for i in (1, 2)]
        whole = halves[0] * halves[1] * file.alpha(name, rank) / rank
    else:
        w1, w2 = (own[n] if n in own else _half(own, n, "lokr_t2") for n in ("lokr_w1", "lokr_w2"))
        low = own.get("lokr_w2_b", own.get("lokr_w1_b"))
        whole = torch.kron(w1, w2.flatten(1)) * (1.0 if low is None else file.alpha(name, len(low)) / len(low))
    return _cut(whole, rows).reshape(weight.shape)


def _half(own: dict[str, Tensor], name: str, middle: str) -> Tensor:
    a, b = own[f"{name}_a"], own[f"{name}_b"]
    if middle not in own:
        return a @ b
    return torch.einsum("ij...,jr,ip->pr...", own[middle], b, a)


def _cut(tensor: Tensor, rows: Rows) -> Tensor:
    if rows is None:
        return tensor
    start, stop, _ = (share * len(tensor) // rows[2] for share in rows)
    return tensor[start:stop]


def _product(change: readers.Change, weight: Tensor) -> Tensor:
    return change.scale * (change.up.float().flatten(1) @ change.down.float().flatten(1)).view(weight.shape)


def _norm(weight: Tensor, *, over_rows: bool) -> Tensor:
    across = weight.float() if over_rows else weight.float().transpose(0, 1)
    norm = across.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
    return norm if over_rows else norm.transpose(0, 1)
