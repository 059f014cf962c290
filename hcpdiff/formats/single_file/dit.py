"""The tensors of SD3's and FLUX's transformers in the files of their original code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from hcpdiff.formats import dit_names
from hcpdiff.formats.single_file.table import MakeTable, Shapes, Source, Table

_SD3_NORMS = {
    "attn.norm_q.weight": "x_block.attn.ln_q.weight",
    "attn.norm_k.weight": "x_block.attn.ln_k.weight",
    "attn.norm_added_q.weight": "context_block.attn.ln_q.weight",
    "attn.norm_added_k.weight": "context_block.attn.ln_k.weight",
    "attn2.norm_q.weight": "x_block.attn2.ln_q.weight",
    "attn2.norm_k.weight": "x_block.attn2.ln_k.weight",
}
_DOUBLE_NORMS = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
}
_SINGLE_NORMS = {"attn.norm_q.weight": "norm.query_norm.scale", "attn.norm_k.weight": "norm.key_norm.scale"}

Norms = Mapping[str, tuple[str, Mapping[str, str]]]  # {blocks of diffusers: (blocks, {diffusers': original})}


def _table(names: dit_names.Table, norms: Norms, shapes: Shapes) -> Table:
    return {key: _source(names, norms, key, shapes) for key in shapes}


def _source(names: dit_names.Table, norms: Norms, key: str, shapes: Shapes) -> Source:
    if key == "pos_embed.pos_embed":
        return Source("pos_embed")
    layer, _, parameter = key.rpartition(".")
    blocks, _, rest = key.partition(".")
    number, _, rest = rest.partition(".")
    if blocks in norms and rest in norms[blocks][1]:
        return Source(f"{norms[blocks][0]}.{number}.{norms[blocks][1][rest]}")
    original = dit_names.to_original(names, layer)
    if original is None:
        raise ValueError(f"{key}: the original code of this transformer has no such layer")
    name = f"{original.name}.{parameter}"
    if original.fused:
        before = original.layers[: original.layers.index(layer)]
        start = sum(shapes[f"{other}.{parameter}"][0] for other in before)
        return Source(name, (start, start + shapes[key][0]))
    swaps = dit_names.swaps_halves(layer, *shapes[f"{layer}.weight"][:2])
    return Source(name, change="halves" if swaps else "none")


SD3_NORMS: Norms = {"transformer_blocks": ("joint_blocks", _SD3_NORMS)}
FLUX_NORMS: Norms = {
    "transformer_blocks": ("double_blocks", _DOUBLE_NORMS),
    "single_transformer_blocks": ("single_blocks", _SINGLE_NORMS),
}
sd3: MakeTable = partial(_table, dit_names.SD3, SD3_NORMS)
flux: MakeTable = partial(_table, dit_names.FLUX, FLUX_NORMS)
