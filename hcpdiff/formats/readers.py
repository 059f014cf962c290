"""How other programs read a LoRA file, written down from what they were seen to do and apart from `names` and `kohya`.

A reader says which of a file's names change a layer, and how. `contract` compares that with what was trained.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

PAIRS = {".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight"}
_ENCODERS = {
    "sd": {"clip": ("lora_te", "text_encoder")},
    "sdxl": {"clip_l": ("lora_te1", "text_encoder"), "clip_g": ("lora_te2", "text_encoder_2")},
    "sd3": {
        "clip_l": ("lora_te1", "text_encoder"),
        "clip_g": ("lora_te2", "text_encoder_2"),
        "t5": ("lora_te3", "text_encoder_3"),
    },
    "flux": {"clip_l": ("lora_te1", "text_encoder"), "t5": ("lora_te3", "text_encoder_2")},
}

Rows = tuple[int, int, int] | None  # first, last and all shares of a layer that is one of several in a fused one


@dataclass(frozen=True)
class Change:
    """What a program does to one layer: scale * up @ down."""

    down: Tensor
    up: Tensor
    scale: float


class File:
    """A file's pairs of matrices by their names, its alphas and its header."""

    def __init__(self, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
        self.tensors, self.header = tensors, header
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for up, down in PAIRS.items():
            names = [key.removesuffix(up) for key in tensors if key.endswith(up)]
            self.pairs |= {name: (tensors[name + down], tensors[name + up]) for name in names}
        self.kohya = any(key.endswith(".lora_up.weight") for key in tensors)
        self.biased = any(key.endswith(".lora_B.bias") for key in tensors)

    def alpha(self, name: str, absent: float) -> float:
        found = self.tensors.get(f"{name}.alpha")
        return absent if found is None else float(found)

    def change(self, name: str, alpha: float, rows: Rows = None) -> Change | None:
        """Of a name's pair."""
        if name not in self.pairs:
            return None
        down, up = self.pairs[name]
        if rows is not None:
            start, stop, _ = (share * len(up) // rows[2] for share in rows)
            up = up[start:stop]
        return Change(down, up, alpha / len(down))


def comfyui(file: File, layer: str, family: str) -> Change | None:
    """Alpha is the one beside the matrices, or else the rank; the header is not looked at."""
    for name, rows in comfyui_names(layer, family):
        if name in file.pairs:
            return file.change(name, file.alpha(name, len(file.pairs[name][0])), rows)
    return None


def kohya(file: File, layer: str, family: str) -> Change | None:
    """Names of its own alone."""
    if not layer.startswith("denoiser.") and family not in _ENCODERS:
        return None
    name, rows = kohya_name(layer, family)
    if name not in file.pairs or not file.kohya:
        return None
    return file.change(name, file.alpha(name, len(file.pairs[name][0])) or len(file.pairs[name][0]), rows)


def diffusers(file: File, layer: str, family: str) -> Change | None:
    """Names of its own, with the header's alphas; kohya's for all but SD3. Of text it reads CLIPs alone."""
    if not layer.startswith(("denoiser.", "text_encoders.clip")):
        return None
    if file.kohya:
        name, rows = kohya_name(layer, family)
        if family == "sd3" or name not in file.pairs:
            return None
        alpha = file.alpha(name, len(file.pairs[name][0]))
        if family in ("sd", "sdxl") and re.search(r"\.attn[12]\.", layer):
            alpha = _most_common_alpha(file, alpha)
        return file.change(name, alpha, rows)
    folder, path = diffusers_name(layer, family)
    name = f"{folder}.{path}"
    if name not in file.pairs:
        return None
    return file.change(name, _header_alpha(file, folder, path, len(file.pairs[name][0])))


def diffusers_name(layer: str, family: str) -> tuple[str, str]:
    """The folder of a layer's part, and its path there."""
    if layer.startswith("denoiser."):
        return "unet" if family in ("sd", "sdxl") else "transformer", layer.removeprefix("denoiser.")
    _, part, path = layer.split(".", 2)
    return _ENCODERS[family][part][1], path


Reader = Callable[[File, str, str], Change | None]
_ALL: dict[str, Reader] = {"diffusers": diffusers, "ComfyUI": comfyui, "kohya": kohya}
_UNET = {**_ALL, "the web UI": kohya}  # it has the names of kohya, for these alone
_MUSUBI: dict[str, Reader] = {"diffusers": diffusers, "ComfyUI": comfyui, "musubi-tuner": kohya}
READERS: dict[str, dict[str, Reader]] = {  # {family: the programs of which it is known whether they read its files}
    **dict.fromkeys(("sd", "sdxl"), _UNET),
    **dict.fromkeys(("sd3", "flux"), _ALL),
    "pixart": {"ComfyUI": comfyui},
    "zimage": _MUSUBI,
    "qwen_image": _MUSUBI,
}


def _header_alpha(file: File, folder: str, path: str, rank: int) -> float:
    config = json.loads(file.header.get("lora_adapter_metadata", "{}"))
    patterns = config.get(f"{folder}.alpha_pattern", {})
    for pattern, alpha in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return float(alpha)
    return float(config.get(f"{folder}.lora_alpha", rank))


def _most_common_alpha(file: File, default: float) -> float:
    """Alphas of a UNet's attention layers that differ from it get lost."""
    own = [float(v) for key, v in file.tensors.items() if key.startswith("lora_unet_") and key.endswith(".alpha")]
    return Counter(own).most_common(1)[0][0] if own else default


def comfyui_names(layer: str, family: str) -> list[tuple[str, Rows]]:
    """What it looks for, and which rows of a layer that is one of several in it."""
    if family not in _ENCODERS:
        return _generic_names(layer, family)
    names = [kohya_name(layer, family)]
    if not layer.startswith("denoiser."):
        _, encoder, path = layer.split(".", 2)
        return names if encoder == "t5" else [*names, (f"{_ENCODERS[family][encoder][1]}.{path}", None)]
    path = layer.removeprefix("denoiser.")
    flat = path.replace(".", "_")
    if family in ("sd", "sdxl"):
        names.append((f"lora_unet_{flat}", None))
        # Of diffusers' own names it wants those of the attention as they were before PEFT.
        return names if re.search(r"\.to_(?:[qkv]|out\.0)$", path) else [*names, (f"unet.{path}", None)]
    return [*names, (f"transformer.{path}", None), (f"lora_transformer_{flat}", None), (f"lycoris_{flat}", None)]


def _generic_names(layer: str, family: str) -> list[tuple[str, Rows]]:
    """Any name of the original code, flat or not, and of diffusers' those with the prefixes that the family's have."""
    if not layer.startswith("denoiser."):
        return []
    path = layer.removeprefix("denoiser.")
    own, rows = _own_name(path, family)
    names = [f"{prefix}{path}" for prefix in _PREFIXES[family]]
    names += [] if family == "pixart" else [f"lycoris_{path.replace('.', '_')}"]
    original = [f"lora_unet_{own.replace('.', '_')}", f"diffusion_model.{own}"]
    return [*((name, None) for name in names), *((name, rows) for name in original)]


_PREFIXES = {
    "pixart": ("transformer.", "base_model.model.", "unet.base_model.model."),
    "zimage": ("transformer.", "diffusion_model.", ""),
    "qwen_image": ("transformer.", "diffusion_model.", ""),
}


def _own_name(path: str, family: str) -> tuple[str, Rows]:
    """What ComfyUI itself calls a layer of diffusers, and which of its rows that is."""
    path = path.replace("transformer_blocks.", "blocks.") if family == "pixart" else path
    for theirs, own, rows in _OWN.get(family, ()):
        if re.search(theirs, path):
            return re.sub(theirs, own, path), rows
    return path, None


_OWN: dict[str, list[tuple[str, str, Rows]]] = {
    "zimage": [
        *((rf"attention\.to_{name}$", "attention.qkv", (i, i + 1, 3)) for i, name in enumerate("qkv")),
        (r"attention\.to_out\.0$", "attention.out", None),
        (r"^all_(\w+)\.2-1", r"\1", None),
    ],
    "pixart": [
        *((rf"attn1\.to_{name}$", "attn.qkv", (i, i + 1, 3)) for i, name in enumerate("qkv")),
        *((rf"attn2\.to_{name}$", "cross_attn.kv_linear", (i, i + 1, 2)) for i, name in enumerate("kv")),
        (r"attn2\.to_q$", "cross_attn.q_linear", None),
        (r"attn1\.to_out\.0$", "attn.proj", None),
        (r"attn2\.to_out\.0$", "cross_attn.proj", None),
        (r"ff\.net\.0\.proj$", "mlp.fc1", None),
        (r"ff\.net\.2$", "mlp.fc2", None),
    ],
}


def kohya_name(layer: str, family: str) -> tuple[str, Rows]:
    """The name and the rows."""
    if not layer.startswith("denoiser."):
        _, encoder, path = layer.split(".", 2)
        return f"{_ENCODERS[family][encoder][0]}_{path.replace('.', '_')}", None
    path, rows = layer.removeprefix("denoiser."), None
    if family == "sdxl":
        path = _sgm(path)
    elif family in ("sd3", "flux"):
        path, rows = _fused(path, family)
    return f"lora_unet_{path.replace('.', '_')}", rows


def _sgm(path: str) -> str:
    """By a list of the stock XL's blocks."""
    for ours, theirs in _SGM_BLOCKS.items():
        if path.startswith(f"{ours}."):
            rest = path.removeprefix(f"{ours}.")
            return f"{theirs}.{_SGM_RESNET.get(rest, rest)}" if "samplers" not in ours else theirs
    return _SGM_SINGLE.get(path, path)


_SGM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_SGM_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_INPUTS = {(0, 0): 1, (0, 1): 2, (1, 0): 4, (1, 1): 5, (2, 0): 7, (2, 1): 8}
_SGM_BLOCKS = {
    **{f"down_blocks.{block}.resnets.{i}": f"input_blocks.{n}.0" for (block, i), n in _INPUTS.items()},
    **{f"down_blocks.{block}.attentions.{i}": f"input_blocks.{n}.1" for (block, i), n in _INPUTS.items()},
    "down_blocks.0.downsamplers.0": "input_blocks.3.0.op",
    "down_blocks.1.downsamplers.0": "input_blocks.6.0.op",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    **{f"up_blocks.{n // 3}.resnets.{n % 3}": f"output_blocks.{n}.0" for n in range(9)},
    **{f"up_blocks.{n // 3}.attentions.{n % 3}": f"output_blocks.{n}.1" for n in range(9)},
    "up_blocks.0.upsamplers.0": "output_blocks.2.2.conv",
    "up_blocks.1.upsamplers.0": "output_blocks.5.2.conv",
}


def _fused(path: str, family: str) -> tuple[str, Rows]:
    block, _, rest = path.partition("blocks.")
    number, _, rest = rest.partition(".")
    if block == "single_transformer_":
        if rest in ("attn.to_q", "attn.to_k", "attn.to_v"):
            place = "qkv".index(rest[-1])
            return f"single_blocks.{number}.linear1", (place, place + 1, 7)
        other = {"proj_mlp": "linear1", "proj_out": "linear2", "norm.linear": "modulation.lin"}[rest]
        return f"single_blocks.{number}.{other}", (3, 7, 7) if rest == "proj_mlp" else None
    if block != "transformer_":
        return path, None
    text = bool(re.search(r"add_|_context", rest))
    stream = {"sd3": ("x_block.", "context_block."), "flux": ("img_", "txt_")}[family][text]
    start = f"{'joint' if family == 'sd3' else 'double'}_blocks.{number}.{stream}"
    if found := re.fullmatch(r"(attn2?)\.(?:to|add)_([qkv])(?:_proj)?", rest):
        place = "qkv".index(found[2])
        return f"{start}{found[1]}.qkv", (place, place + 1, 3)
    if rest.startswith("attn"):
        return f"{start}{rest.partition('.')[0]}.proj", None
    if rest.startswith("ff"):
        first, second = {"sd3": ("mlp.fc1", "mlp.fc2"), "flux": ("mlp.0", "mlp.2")}[family]
        return start + (first if rest.endswith("proj") else second), None
    return start + {"sd3": "adaLN_modulation.1", "flux": "mod.lin"}[family], None
