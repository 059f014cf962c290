"""From the tensors of a file to what each module of it does to a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from hcpdiff.formats.changes import AnyChange, Change
from hcpdiff.formats.dora import DoRA
from hcpdiff.formats.lora_files import SUFFIXES, Update
from hcpdiff.formats.lycoris import IA3, Full, GLoRA, LoHa, LoKr
from hcpdiff.formats.oft import OFT

KINDS: tuple[type[Change], ...] = (LoHa, LoKr, GLoRA, OFT, IA3, Full)
LORA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "bias": "lora_up.bias"}
NORM = {"w_norm": "diff", "b_norm": "diff_b"}  # what LyCORIS calls the same of a norm
PEFT = {f"lora_magnitude_vector{rest}": "lora_magnitude_vector" for rest in ("", ".weight", ".default.weight")}

# {end of a key: what the tensor is}, by the names that `build` takes.
_ENDS = {suffix: LORA.get(name, name) for suffix, name in SUFFIXES.items()}
_ENDS |= {f".{name}": name for kind in KINDS for name in kind.NAMES.values()}
_ENDS |= {f".{name}": name for name in ("dora_scale", "on_input")}
_ENDS |= {f".{name}": ours for name, ours in {**NORM, **PEFT}.items()}
_LONGEST_FIRST = sorted(_ENDS, key=len, reverse=True)


def grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, AnyChange], list[str]]:
    """Tensors of a file by the module that they are for, {name: change}, and what means nothing: keys, and modules that
    are not whole, with the reason."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        end = next((end for end in _LONGEST_FIRST if key.endswith(end)), None)
        if end is None or (end == ".weight" and f"{key.removesuffix(end)}.on_input" not in tensors):
            unknown.append(key)
        else:
            modules.setdefault(key.removesuffix(end), {})[_ENDS[end]] = tensor
    changes: dict[str, AnyChange] = {}
    for name, own in modules.items():
        try:
            changes[name] = _of_module(own)
        except ValueError as problem:
            unknown.append(f"{name} ({'/'.join(own)}: {problem})")
    return changes, unknown


def _of_module(own: Mapping[str, Tensor]) -> AnyChange:
    settings: dict[str, Any] = {}
    if "alpha" in own:
        settings["alpha"] = float(own["alpha"]) or None  # 0 means the rank, in kohya's files
    if "on_input" in own:
        settings["on_input"] = bool(own["on_input"])
    return build({name: tensor for name, tensor in own.items() if name not in ("alpha", "on_input")}, **settings)


def build(tensors: Mapping[str, Tensor], **settings: Any) -> AnyChange:
    """What tensors of these names do; inverse of `taken_apart`.

    Args:
        settings: what the change is told besides: `alpha`, `on_input`, `pieces`.

    Raises:
        ValueError: they make no change, or several.
    """
    own = dict(tensors)
    magnitude, of_rows = own.pop("dora_scale", None), own.pop("lora_magnitude_vector", None)
    if of_rows is not None:  # of a convolution it is (1, out, 1, 1)
        magnitude = of_rows.flatten()[:, None]
    if "lora_down.weight" in own or "lora_up.weight" in own:
        change = _lora(own, **settings)
    else:
        change = _lycoris(own, **settings)
    return change if magnitude is None else DoRA(change, magnitude)


def _lora(own: dict[str, Tensor], alpha: float | None = None) -> Update:
    parts = {name: own.pop(key, None) for name, key in LORA.items()}
    if parts["down"] is None or parts["up"] is None:
        raise ValueError("the other matrix is missing")
    update = Update(parts["down"], parts["up"], alpha, parts["mid"], parts["bias"])
    if (bias := own.pop("diff_b", None)) is not None:
        update = replace(update, bias=bias / update.scale)
    _check_used(own)
    return update


def _lycoris(own: dict[str, Tensor], **settings: Any) -> Change:
    kind = next((kind for kind in KINDS if own.keys() & set(kind.NAMES.values())), None)
    if kind is None:
        raise ValueError("it says nothing of a weight")
    found = {field: own.pop(name) for field, name in kind.NAMES.items() if name in own}
    _check_used(own)
    try:
        return kind(**found, **settings)
    except TypeError as error:
        raise ValueError(str(error).partition("() ")[2]) from None


def _check_used(left: Mapping[str, Tensor]) -> None:
    if left:
        raise ValueError(f"{'/'.join(left)} does not belong to it")


def taken_apart(change: AnyChange) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a change by LyCORIS' names, and the settings that are none."""
    if isinstance(change, DoRA):
        tensors, settings = taken_apart(change.of)
        return {**tensors, "dora_scale": change.magnitude}, settings
    names = LORA if isinstance(change, Update) else change.NAMES
    tensors = {name: getattr(change, field) for field, name in names.items() if getattr(change, field) is not None}
    settings: dict[str, Any] = {}
    if isinstance(change, (Update, LoHa, LoKr, GLoRA, OFT)):
        settings["alpha"] = change.alpha
    if isinstance(change, IA3):
        settings["on_input"] = change.on_input
    if isinstance(change, LoKr):
        settings["pieces"] = change.pieces
    return tensors, settings
