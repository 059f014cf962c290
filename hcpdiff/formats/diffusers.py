"""LoRA as diffusers writes it: the folder of each part, its layers' own names, `lora_A` and `lora_B`.

There is no alpha beside the matrices. diffusers looks for it in the header, ComfyUI takes it to be the rank; so it is
folded in, and the header says the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hcpdiff.formats.changes import AnyChange, Changes
from hcpdiff.formats.dora import DoRA, with_alpha
from hcpdiff.formats.lora_files import Update, folded, listing, without_mid
from hcpdiff.formats.names import Architecture, to_diffusers

METADATA = "lora_adapter_metadata"


def write(updates: Changes, arch: Architecture) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its header.

    Raises:
        ValueError: listing the layers of parts that such files do not have, or with changes that they cannot hold.
    """
    named = {layer: to_diffusers(arch, layer) for layer in updates}
    if lost := [layer for layer, name in named.items() if name is None]:
        raise ValueError(f"diffusers: {len(lost)} of {len(updates)} layers have no name there: {listing(lost)}")
    return write_named({str(named[layer]): update for layer, update in updates.items()})


def write_named(updates: Changes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`write` for updates by the names that they shall have."""
    if lost := [name for name, update in updates.items() if not holds(update)]:
        raise ValueError(
            f"diffusers: {len(lost)} of {len(updates)} layers have changes that no LoRA there can hold: {listing(lost)}"
        )
    parts = {layer.partition(".")[0] for layer, update in updates.items() if isinstance(update, DoRA)}
    if mixed := [
        name for name, update in updates.items() if name.partition(".")[0] in parts and isinstance(update, Update)
    ]:
        raise ValueError(f"diffusers: beside a DoRA, {len(mixed)} layers have a plain LoRA: {listing(mixed)}")
    plain = {name: folded(without_mid(_lora(update))) for name, update in updates.items()}
    tensors: dict[str, Tensor] = {}
    for name, update in plain.items():
        tensors |= {f"{name}.lora_A.weight": update.down, f"{name}.lora_B.weight": update.up}
        if update.bias is not None:
            tensors[f"{name}.lora_B.bias"] = update.bias
        if isinstance(dora := updates[name], DoRA):
            shape = (-1,) if update.down.ndim == 2 else (1, -1, 1, 1)
            tensors[f"{name}.lora_magnitude_vector"] = dora.magnitude.view(shape)
    return tensors, {METADATA: json.dumps(config(updates))}


def holds(update: AnyChange) -> bool:
    """Whether such files can hold this change."""
    return isinstance(update, Update) or (
        isinstance(update, DoRA) and isinstance(update.of, Update) and not update.on_input
    )


def _lora(update: AnyChange) -> Update:
    inner = update.of if isinstance(update, DoRA) else update
    assert isinstance(inner, Update)
    return inner


def config(updates: Changes) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig for folded updates, each under the name of its part."""
    parts: dict[str, dict[str, AnyChange]] = {}
    for name, update in updates.items():
        part, _, path = name.partition(".")
        parts.setdefault(part, {})[path] = update
    return {f"{part}.{key}": value for part, own in parts.items() for key, value in peft_config(own).items()}


def peft_config(updates: Changes) -> dict[str, Any]:
    """Of one part."""
    first = next(iter(updates.values()))
    ranks = {_pattern(path): update.rank for path, update in updates.items()}
    return {
        "r": first.rank,
        "lora_alpha": first.rank,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
        "target_modules": [path.removeprefix("text_model.") for path in updates],
        "lora_bias": any(_lora(update).bias is not None for update in updates.values()),
        "use_dora": any(isinstance(update, DoRA) for update in updates.values()),
    }


def _pattern(path: str) -> str:
    """`^` makes it mean this very layer; without, a path may start with more: `text_model` in some transformers."""
    return path.removeprefix("text_model.") if path.startswith("text_model.") else f"^{path}"


def with_alphas(modules: Changes, header: Mapping[str, str]) -> dict[str, AnyChange]:
    """Modules by the names of a file, with the alphas that its header gives."""
    text = header.get(METADATA)
    values = json.loads(text) if text else {}
    parts = {key.rpartition(".")[0] for key in values if key.endswith(".r")}
    own = {
        part: {k.removeprefix(f"{part}."): v for k, v in values.items() if k.startswith(f"{part}.")} for part in parts
    }
    result = dict(modules)
    for name, update in modules.items():
        part, _, path = name.partition(".")
        inner = update.of if isinstance(update, DoRA) else update
        if part in own and isinstance(inner, Update) and inner.alpha is None:
            result[name] = with_alpha(update, peft_alpha(own[part], path, update.rank))
    return result


def peft_alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The alpha of a layer by a LoraConfig; as PEFT does it, a pattern is the end of a path or `^` and the whole."""
    alpha = config.get("lora_alpha", rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path) or re.fullmatch(pattern, path):
            alpha = value
            break
    return alpha * rank**0.5 if config.get("use_rslora") else float(alpha)
