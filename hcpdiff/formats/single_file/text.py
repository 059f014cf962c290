"""What the files call the layers of their text encoders: transformers' names, or those of OpenCLIP."""

from __future__ import annotations

import re

from hcpdiff.formats.single_file.table import Shapes, Source, Table

OPEN = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
_TOP = ("embeddings.", "encoder.", "final_layer_norm.")


def clip(shapes: Shapes) -> Table:
    """Of transformers' CLIP; since 5.6 CLIPTextModel says no `text_model.` in front, and files do."""
    return {key: Source(clip_name(key)) for key in shapes}


def clip_name(key: str) -> str:
    """With `text_model.` in front where it belongs."""
    return f"text_model.{key}" if key.startswith(_TOP) else key


def open_clip(shapes: Shapes) -> Table:
    """Of OpenCLIP, as SD 2 and XL's second encoder have it: q, k and v are one, the projection is transposed."""
    table = {}
    for key, shape in shapes.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            table[key] = Source("text_projection", change="transposed")
            continue
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            start = "qkv".index(found[2]) * shape[0]
            joined = f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"
            table[key] = Source(joined, (start, start + shape[0]))
            continue
        for ours, original in OPEN.items():
            name = name.replace(ours, original)
        table[key] = Source(name)
    return table


def t5(shapes: Shapes) -> Table:
    """Of transformers' T5EncoderModel, which has its embedding twice."""
    return {key: Source(t5_name(key)) for key in shapes}


def t5_name(key: str) -> str:
    """One name for the embedding."""
    return "shared.weight" if key == "encoder.embed_tokens.weight" else key
