"""What the first code of Stable Diffusion, and XL's, call the layers of the UNet and the VAE."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hcpdiff.formats.single_file.table import Shapes, Source, Table

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_VAE = {
    r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d+)\.downsamplers\.0\.": r"down.\1.downsample.",
    r"up_blocks\.(\d+)\.resnets\.": r"up.\1.block.",
    r"up_blocks\.(\d+)\.upsamplers\.0\.": r"up.\1.upsample.",
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"conv_shortcut\.": "nin_shortcut.",
    r"conv_norm_out\.": "norm_out.",
    r"attn_1\.group_norm\.": "attn_1.norm.",
    r"attn_1\.to_([qkv])\.": r"attn_1.\1.",
    r"attn_1\.to_out\.0\.": "attn_1.proj_out.",
}


def unet(shapes: Shapes) -> Table:
    """Of diffusers' UNet2DConditionModel. The original counts blocks through all resolutions."""
    first = {side: _first_blocks(side, shapes) for side in ("down", "up")}
    return {key: Source(_unet_key(key, shapes, first)) for key in shapes}


def vae(shapes: Shapes) -> Table:
    """Of diffusers' AutoencoderKL. The original counts the decoder's resolutions from the finest, its attention's
    layers are convolutions."""
    last = max((int(found[1]) for key in shapes if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", key))), default=0)
    table = {}
    for key, shape in shapes.items():
        name = re.sub(r"(?<=decoder\.up_blocks\.)\d+", lambda number: str(last - int(number[0])), key)
        for ours, original in _VAE.items():
            name = re.sub(ours, original, name)
        conv = ".attn_1." in name and len(shape) == 2
        table[key] = Source(name, change="conv" if conv else "none")
    return table


def _first_blocks(side: str, keys: Iterable[str]) -> dict[int, int]:
    """{resolution: the number of its first block in the original}."""
    resnets: dict[int, int] = {}
    for key in keys:
        if found := re.match(rf"{side}_blocks\.(\d+)\.resnets\.(\d+)\.", key):
            resnets[int(found[1])] = max(resnets.get(int(found[1]), 0), int(found[2]) + 1)
    number, first = (1 if side == "down" else 0), {}
    for block in sorted(resnets):
        first[block] = number
        number += resnets[block] + (side == "down")  # then the change of size, in a block of its own on the way down
    return first


def _unet_key(key: str, shapes: Shapes, first: dict[str, dict[int, int]]) -> str:
    layer, _, parameter = key.rpartition(".")
    if layer in SINGLE:
        return f"{SINGLE[layer]}.{parameter}"
    found = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", key)
    layer, _, parameter = found[5].rpartition(".") if found else ("", "", "")
    if found is None or (found[3] == "resnets" and layer not in RESNET):
        raise ValueError(f"{key}: the original code of Stable Diffusion has no such layer in its UNet")
    side, kind, i, rest = found[1], found[3], int(found[4]), found[5]
    if kind == "resnets":
        rest = f"{RESNET[layer]}.{parameter}"
    if side is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * i}.{rest}"
    block = int(found[2])
    number = first[side][block] + i
    if kind == "downsamplers":
        return f"input_blocks.{first[side][block + 1] - 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # the last of its last block, after an attention if there is one
        inner = 2 if f"up_blocks.{block}.attentions.0.norm.weight" in shapes else 1
        return f"output_blocks.{first[side][block + 1] - 1}.{inner}.{rest}"
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{1 if kind == 'attentions' else 0}.{rest}"
