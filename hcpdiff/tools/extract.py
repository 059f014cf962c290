"""`hcpdiff extract`: what distinguishes a model from another one, as a LoRA."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import hcpdiff
from hcpdiff.formats import convert, metadata, names
from hcpdiff.formats.lora_files import Update, listing
from hcpdiff.formats.names import Architecture, architecture
from hcpdiff.formats.tensor_files.opening import read_json
from hcpdiff.tools.lora import check_new
from hcpdiff.tools.low_rank import Factors, Target, factorise
from hcpdiff.tools.model_files import ModelFiles, layer_of, open_like, open_model, part_of
from hcpdiff.tools.selecting import select

log = logging.getLogger("hcpdiff.tools")
_EMBEDDING = re.compile(r".*\.(?:token_embedding|position_embedding|shared|embed_tokens|relative_attention_bias)")


@dataclass(frozen=True)
class Extracted:
    """What was written.

    Args:
        ranks: by layer.
        kept: of each layer, the share of the squared singular values.
        energy: the same of all layers together.
        left_out: tensors that differ, and that a LoRA does not hold.
    """

    path: Path
    ranks: dict[str, int]
    kept: dict[str, float]
    energy: float
    left_out: list[str]


def extract(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    layers: Sequence[str] = (),
) -> Extracted:
    """Write a LoRA that makes `tuned` of `base`, as nearly as its ranks allow, in the form that most programs load.

    Layers that are the same are left out. Its dtype is that of `tuned`.

    Args:
        base: a model's folder or single file.
        tuned: another one of the same family, in either layout, or the weights of one part of it.
        out: a new file.
        rank: of every layer.
        energy: instead, of each layer the smallest rank that keeps this share of its squared singular values.
        layers: selectors; none takes all layers.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the models differ in nothing, or are of two kinds. Nothing is written then.
    """
    target, out = Target(rank, energy), check_new(out, base, tuned)
    one = open_model(base)
    two = open_like(tuned, one)
    if one.family is None:
        raise ValueError(f"{base}: adapters of models such as this are not known as files")
    arch, chosen = architecture(one.family), _chosen(one, two, layers)
    updates: dict[str, Update] = {}
    factors: dict[str, tuple[float, float]] = {}
    left_out: list[str] = []
    for name in tqdm(chosen, desc="extract", unit="tensor", dynamic_ncols=True, leave=False):
        change, dtype = _change(one, two, name)
        if change is None:
            continue
        if not _fits(arch, name, change):
            left_out.append(name)
            continue
        found = factorise(change.flatten(1), target)
        updates[layer_of(name)] = _update(found, change.shape, dtype)
        factors[layer_of(name)] = found.kept, found.total
    if left_out:
        log.warning("%s: %d tensors differ that it cannot hold: %s", out, len(left_out), listing(left_out))
    if not updates:
        rest = f" but {len(left_out)} tensors that no LoRA holds" if left_out else f" of {len(chosen)} tensors"
        raise ValueError(f"{tuned}: it differs from {base} in nothing{rest}")
    convert.write(out, updates, arch, arch.form, _header(one, updates, out.stem))
    kept, total = (sum(values) for values in zip(*factors.values(), strict=True))
    shares = {layer: own / whole for layer, (own, whole) in factors.items()}
    return Extracted(out, {layer: update.rank for layer, update in updates.items()}, shares, kept / total, left_out)


def _chosen(one: ModelFiles, two: ModelFiles, layers: Sequence[str]) -> list[str]:
    """The tensors that both have, in the selected layers."""
    both = [name for name in one.places if name in two.places and one.entry(name).dtype.is_floating_point]
    other = [name for name in both if one.entry(name).shape != two.entry(name).shape]
    if other or not both:
        what = f"{len(other)} of {len(both)} tensors have another shape: {listing(other, 3)}" if other else "no names"
        raise ValueError(f"{two.path}: it does not go with {one.path}: {what}")
    known = list(dict.fromkeys(map(layer_of, both)))
    wanted = {layer for i, selector in enumerate(layers) for layer in select(known, selector, f"layers[{i}]")}
    return [name for name in both if not layers or layer_of(name) in wanted]


def _change(one: ModelFiles, two: ModelFiles, name: str) -> tuple[Tensor | None, torch.dtype]:
    """What was added to a tensor, in float32, or None; rounding to another dtype is no change."""
    before, after = one.get(name), two.get(name)
    dtype = after.dtype if after.dtype.itemsize > 1 else torch.float16
    narrow = min(before.dtype, after.dtype, key=lambda d: d.itemsize)
    if torch.equal(before.to(narrow), after.to(narrow)):
        return None, dtype
    change = after.to(torch.float32, copy=True).sub_(before)
    del before, after
    if not torch.isfinite(change).all():
        raise ValueError(f"{name}: its difference has values that are no numbers; `hcpdiff inspect` looks at files")
    return change, dtype


def _fits(arch: Architecture, name: str, change: Tensor) -> bool:
    """Whether a LoRA file can hold the change of this tensor."""
    layer = layer_of(name)
    if not name.endswith(".weight") or change.ndim not in (2, 4) or _EMBEDDING.fullmatch(layer):
        return False
    named = names.to_kohya(arch, layer) if arch.form == "kohya" else names.to_diffusers(arch, layer)
    return named is not None


def _update(found: Factors, shape: Sequence[int], dtype: torch.dtype) -> Update:
    rank = len(found.down)
    down, up = found.down.to(dtype).view(rank, *shape[1:]), found.up.to(dtype)
    return Update(down, up if len(shape) == 2 else up[:, :, None, None])


def _header(model: ModelFiles, updates: Mapping[str, Update], title: str) -> dict[str, str]:
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    prediction = None
    if model.layout is not None:
        variant = model.layout.name
    else:
        folder = next(place.part for name, place in model.places.items() if part_of(name) == "denoiser")
        file = model.path / "scheduler" / "scheduler_config.json"
        scheduler = read_json(file) if file.is_file() else {}
        prediction = str(scheduler.get("prediction_type", "epsilon")) if folder == "unet" else None
        variant = metadata.variant(str(model.family), read_json(model.path / folder / "config.json"), str(prediction))
    about = metadata.model(variant, title=title, date=date, prediction=prediction)
    return {**metadata.network(updates), **about, "format": "pt", "hcpdiff.version": hcpdiff.__version__}
