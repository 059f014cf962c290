"""LoRA as HCP-Diffusion up to its version 2 wrote it: `<layer>.___.layer.W_down`, older `...layer.lora_down.weight`.

A file is of one part of the model and does not say which; `alpha` in it is the scale itself, alpha / rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from hcpdiff.formats.lora_files import Update

_KEY = re.compile(
    r"(?:(?P<kind>\w+):)?(?P<layer>.+)\.___\.(?:layer\.)?(?P<name>alpha|W_down|W_up|bias|lora_(?:down|up)\.\w+)"
)
_NAMES = {"W_down": "down", "W_up": "up", "lora_down.weight": "down", "lora_up.weight": "up", "lora_up.bias": "bias"}


def read(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Update], list[str]]:
    """{path within the part: update}, and the keys that are no LoRA's. Weights of the moving average are preferred."""
    ema = any(key.startswith("lora_ema:") for key in tensors)
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or found["kind"] not in (None, "lora", "lora_ema"):
            unknown.append(key)
        elif not ema or found["kind"] == "lora_ema":
            modules.setdefault(found["layer"], {})[_NAMES.get(found["name"], found["name"])] = tensor
    broken = [name for name, own in modules.items() if not {"down", "up"} <= own.keys()]
    unknown += [f"{name} ({'/'.join(modules[name])})" for name in broken]
    return {name: _update(own) for name, own in modules.items() if name not in broken}, unknown


def _update(own: Mapping[str, Tensor]) -> Update:
    rank = own["down"].shape[0]
    return Update(own["down"], own["up"], rank * float(own["alpha"]) if "alpha" in own else None, bias=own.get("bias"))
