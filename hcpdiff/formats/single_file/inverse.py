"""From the keys of a part in a single file to the names that diffusers has for its tensors, without a model.

Each function here undoes one of `ldm`, `text` and `dit`: from the shapes of the original tensors it gives those of
diffusers'. Keys that mean nothing to it are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hcpdiff.formats import dit_names
from hcpdiff.formats.single_file import dit, ldm, text
from hcpdiff.formats.single_file.layouts import Part
from hcpdiff.formats.single_file.table import Shapes, Table, original_shapes


def table_of(part: Part, shapes: Shapes) -> Table:
    """{diffusers' name: where it lies} of the tensors of a part.

    Args:
        shapes: of its tensors in the file, by their keys without prefix.
    """
    names = _INVERSE[part.table](shapes)
    table = part.table(names)
    expected = original_shapes(table, names)
    return {name: source for name, source in table.items() if _fits(shapes.get(source.key), expected[source.key])}


def _fits(found: tuple[int, ...] | None, expected: tuple[int, ...]) -> bool:
    return found == expected or (expected[2:] == (1, 1) and found == expected[:2])


def unet(shapes: Shapes) -> Shapes:
    """Of the UNet; where a resolution ends is told by the layers that change it."""
    down = sorted(
        int(found[1]) for key in shapes if (found := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", key))
    )
    up = sorted(int(f[1]) for key in shapes if (f := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.conv\.weight", key)))
    starts = {"input": [1, *(number + 1 for number in down)], "output": [0, *(number + 1 for number in up)]}
    names = {_unet_name(key, starts): shape for key, shape in shapes.items()}
    return {name: shape for name, shape in names.items() if name is not None}


def _unet_name(key: str, starts: Mapping[str, list[int]]) -> str | None:
    layer, _, parameter = key.rpartition(".")
    if layer in _SINGLE:
        return f"{_SINGLE[layer]}.{parameter}"
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", key):
        if found[1] == "1":
            return f"mid_block.attentions.0.{found[2]}"
        return _resnet("mid_block", int(found[1]) // 2, found[2])
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", key)
    if found is None:
        return None
    side, number, rest = found[1], int(found[2]), found[4]
    resolution = max(i for i, start in enumerate(starts[side]) if start <= number) if number or side == "output" else 0
    block = f"{'down' if side == 'input' else 'up'}_blocks.{resolution}"
    place = number - starts[side][resolution]
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    return _resnet(block, place, rest) if found[3] == "0" else f"{block}.attentions.{place}.{rest}"


def _resnet(block: str, place: int, rest: str) -> str | None:
    layer, _, parameter = rest.rpartition(".")
    return f"{block}.resnets.{place}.{_RESNET[layer]}.{parameter}" if layer in _RESNET else None


def vae(shapes: Shapes) -> Shapes:
    """Of the VAE."""
    last = max((int(found[1]) for key in shapes if (found := re.match(r"decoder\.up\.(\d+)\.", key))), default=0)
    names = {}
    for key, shape in shapes.items():
        name = re.sub(r"(?<=decoder\.up\.)\d+", lambda number: str(last - int(number[0])), key)
        for original, ours in _VAE:
            name = re.sub(original, ours, name)
        attention = re.search(r"\.attentions\.0\.to_", name) and len(shape) == 4
        names[name] = shape[:2] if attention else shape
    return names


def open_clip(shapes: Shapes) -> Shapes:
    """Of OpenCLIP."""
    names: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key):
            own = (shape[0] // 3, *shape[1:])
            names |= {f"text_model.encoder.layers.{found[1]}.self_attn.{x}_proj.{found[2]}": own for x in "qkv"}
        elif key == "text_projection":
            names["text_projection.weight"] = shape[::-1]
        else:
            name = key
            for ours, original in text.OPEN.items():
                name = name.replace(original, ours)
            names[text.clip_name(name)] = shape
    return names


def same(shapes: Shapes) -> Shapes:
    """Of text encoders whose names files share with transformers."""
    return shapes


def _dit(table: dit_names.Table, norms: dit.Norms, shapes: Shapes) -> Shapes:
    own = {f"{blocks}.{name}": f"{ours}.{key}" for ours, (blocks, of) in norms.items() for key, name in of.items()}
    names: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        blocks, _, rest = key.partition(".")
        number, _, rest = rest.partition(".")
        layer, _, parameter = key.rpartition(".")
        if norm := own.get(f"{blocks}.{rest}"):
            ours, _, name = norm.partition(".")
            names[f"{ours}.{number}.{name}"] = shape
        elif key == "pos_embed":
            names["pos_embed.pos_embed"] = shape
        elif original := dit_names.from_original(table, layer):
            unit = shape[0] // sum(original.shares)
            for name, share in zip(original.layers, original.shares, strict=True):
                rows = share * unit if original.fused else shape[0]
                names[f"{name}.{parameter}"] = (rows, *shape[1:])
    return names


def sd3(shapes: Shapes) -> Shapes:
    """Of SD3's transformer."""
    return _dit(dit_names.SD3, dit.SD3_NORMS, shapes)


def flux(shapes: Shapes) -> Shapes:
    """Of FLUX's transformer."""
    return _dit(dit_names.FLUX, dit.FLUX_NORMS, shapes)


_SINGLE = {original: ours for ours, original in ldm.SINGLE.items()}
_RESNET = {original: ours for ours, original in ldm.RESNET.items()}
_VAE = (
    (r"^((?:en|de)coder)\.(down|up)\.(\d+)\.block\.", r"\1.\2_blocks.\3.resnets."),
    (r"^((?:en|de)coder)\.(down|up)\.(\d+)\.(down|up)sample\.", r"\1.\2_blocks.\3.\4samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^((?:en|de)coder)\.norm_out\.", r"\1.conv_norm_out."),
)
_INVERSE = {
    **{ldm.unet: unet, ldm.vae: vae, text.clip: same, text.t5: same, text.open_clip: open_clip},
    **{dit.sd3: sd3, dit.flux: flux},
}
