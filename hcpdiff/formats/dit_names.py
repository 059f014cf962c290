"""What the original code of transformers calls their layers. It has one layer where diffusers has q, k and v."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

WORDS = (
    *("transformer_blocks", "single_transformer_blocks", "to_q", "to_k", "to_v", "to_out", "to_add_out"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "ff_context", "norm1_context", "proj_mlp", "proj_out", "norm_out"),
    *("time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder", "linear_1", "linear_2"),
    *("context_embedder", "x_embedder", "pos_embed", "adaln_single", "caption_projection", "resolution_embedder"),
    *("aspect_ratio_embedder", "noise_refiner", "context_refiner", "feed_forward", "adaLN_modulation", "t_embedder"),
    *("cap_embedder", "all_x_embedder", "all_final_layer", "img_in", "txt_in", "img_mod", "txt_mod"),
    *("img_mlp", "txt_mlp", "norm_q", "norm_k", "norm_added_q", "norm_added_k"),
)
ROOTS = re.compile(
    r"(?:single_)?transformer_blocks\.\d+\..+|(?:context_embedder|x_embedder|proj_out|norm_out\.linear|pos_embed\.proj)"
    r"|time_text_embed\.(?:timestep|text|guidance)_embedder\.linear_[12]"
)
PIXART_ROOTS = re.compile(
    r"transformer_blocks\.\d+\..+|adaln_single\.(?:linear|emb\.\w+_embedder\.linear_[12])"
    r"|caption_projection\.linear_[12]|pos_embed\.proj|proj_out"
)
ZIMAGE_ROOTS = re.compile(
    r"(?:layers|noise_refiner|context_refiner)\.\d+\..+|all_(?:x_embedder|final_layer)\.[\d-]+(?:\..+)?"
    r"|cap_embedder\.1|t_embedder\.mlp\.[02]"
)
QWEN_IMAGE_ROOTS = re.compile(
    r"transformer_blocks\.\d+\..+|img_in|txt_in|proj_out|norm_out\.linear"
    r"|time_text_embed\.timestep_embedder\.linear_[12]"
)
QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


@dataclass(frozen=True)
class Original:
    """A layer of the original code: diffusers' layers that it is made of, from its first row on."""

    name: str
    layers: tuple[str, ...]
    shares: tuple[int, ...]  # of its rows; they are as wide as its input

    @property
    def fused(self) -> bool:
        return len(self.layers) > 1


Table = Mapping[str, Mapping[str, tuple[str, ...]]]  # {block: {original: diffusers'}}, "" for what is in no block


def _both_streams(image: str, text: str, names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    pairs = {f"{image}{name}": (ours,) for name, (ours, _) in names.items()}
    return pairs | {f"{text}{name}": (ours,) for name, (_, ours) in names.items()}


SD3: Table = {
    "joint_blocks:transformer_blocks": {
        "x_block.attn.qkv": QKV,
        "context_block.attn.qkv": ADDED,
        "x_block.attn2.qkv": tuple(name.replace("attn", "attn2") for name in QKV),
        "x_block.attn2.proj": ("attn2.to_out.0",),
        **_both_streams(
            "x_block.",
            "context_block.",
            {
                "attn.proj": ("attn.to_out.0", "attn.to_add_out"),
                "mlp.fc1": ("ff.net.0.proj", "ff_context.net.0.proj"),
                "mlp.fc2": ("ff.net.2", "ff_context.net.2"),
                "adaLN_modulation.1": ("norm1.linear", "norm1_context.linear"),
            },
        ),
    },
    "": {
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
}
FLUX: Table = {
    "double_blocks:transformer_blocks": {
        "img_attn.qkv": QKV,
        "txt_attn.qkv": ADDED,
        **_both_streams(
            "img_",
            "txt_",
            {
                "attn.proj": ("attn.to_out.0", "attn.to_add_out"),
                "mlp.0": ("ff.net.0.proj", "ff_context.net.0.proj"),
                "mlp.2": ("ff.net.2", "ff_context.net.2"),
                "mod.lin": ("norm1.linear", "norm1_context.linear"),
            },
        ),
    },
    "single_blocks:single_transformer_blocks": {
        "linear1": (*QKV, "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
    "": {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
}
PIXART: Table = {
    "blocks:transformer_blocks": {
        "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "attn.proj": ("attn1.to_out.0",),
        "cross_attn.q_linear": ("attn2.to_q",),
        "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
        "cross_attn.proj": ("attn2.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
    },
    "": {
        "x_embedder.proj": ("pos_embed.proj",),
        "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
        "t_block.1": ("adaln_single.linear",),
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
        "final_layer.linear": ("proj_out",),
    },
}
_ZIMAGE_BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
ZIMAGE: Table = {  # what else it has is called alike
    **{f"{blocks}:{blocks}": _ZIMAGE_BLOCK for blocks in ("layers", "noise_refiner", "context_refiner")},
    "": {
        "x_embedder": ("all_x_embedder.2-1",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    },
}


def to_original(table: Table, path: str) -> Original | None:
    """The original layer that a layer of diffusers is, or is a part of; None if there is none."""
    for blocks, names in table.items():
        original_block, _, block = blocks.partition(":")
        found = re.fullmatch(rf"{block}\.(\d+)\.(.+)", path) if block else re.fullmatch("()(.+)", path)
        for name, layers in names.items() if found else ():
            if found and found[2] in layers:
                return _original(name, layers, (original_block, block), found[1])
    return None


def from_original(table: Table, flat: str) -> Original | None:
    """The same for an original name, in which underscores may stand for dots."""
    flat = flat.replace(".", "_")
    for blocks, names in table.items():
        original_block, _, block = blocks.partition(":")
        found = re.fullmatch(rf"{original_block}_(\d+)_(.+)", flat) if block else re.fullmatch("()(.+)", flat)
        for name, layers in names.items() if found else ():
            if found and found[2] == name.replace(".", "_"):
                return _original(name, layers, (original_block, block), found[1])
    return None


def swaps_halves(path: str, rows: int, columns: int) -> bool:
    """Whether this layer's rows are (shift, scale) in the original and (scale, shift) in diffusers.

    It is so where a stream ends: after all blocks, and for the text in SD3's last block.
    """
    return path == "norm_out.linear" or (path.endswith(".norm1_context.linear") and rows == 2 * columns)


def _original(name: str, layers: tuple[str, ...], blocks: tuple[str, str], number: str) -> Original:
    first, second = (f"{block}.{number}." if block else "" for block in blocks)
    shares = tuple(4 if layer == "proj_mlp" else 1 for layer in layers)
    return Original(first + name, tuple(second + layer for layer in layers), shares)
