"""What files call the layers of a UNet. Two namings: diffusers', and that of the original code ("sgm"), by position."""

from __future__ import annotations

import re

# Names with an underscore inside; all other underscores of a flattened name were dots.
WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "proj_in", "proj_out"),
    *("to_q", "to_k", "to_v", "to_out", "time_emb_proj", "conv_shortcut", "conv_in", "conv_out"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "conv_norm_out"),
)
ROOTS = re.compile(
    r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+\..+"
    r"|conv_in|conv_out|conv_norm_out|(?:time|add)_embedding\.linear_[12]"
)
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
_ORIGINAL_RESNET = {name.replace(".", "_"): ours for ours, name in RESNET.items()}
_ORIGINAL_SINGLE = {name.replace(".", "_"): ours for ours, name in SINGLE.items()}
_PER_BLOCK = 3  # two ResNets and a change of size; every Stable Diffusion has as many


def to_original(path: str) -> str | None:
    """A layer of diffusers' UNet2DConditionModel as the original code calls it; None if it has no name there."""
    if path in SINGLE:
        return SINGLE[path]
    found = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)", path)
    if found is None:
        return None
    side, block, kind, number, rest = found.groups()
    i, inner = int(number), 1 if kind == "attentions" else 0
    if kind == "resnets":
        rest = RESNET.get(rest, "")
    if not rest or i >= _PER_BLOCK:
        return None
    if side is None:
        return f"middle_block.{1 if inner else 2 * i}.{rest}"
    first = _PER_BLOCK * int(block)
    if kind == "downsamplers":
        return f"input_blocks.{first + _PER_BLOCK}.0.op"
    if kind == "upsamplers":  # all of XL's follow an attention
        return f"output_blocks.{first + _PER_BLOCK - 1}.2.conv"
    return (
        f"input_blocks.{1 + first + i}.{inner}.{rest}"
        if side == "down"
        else f"output_blocks.{first + i}.{inner}.{rest}"
    )


def from_original(flat: str) -> str | None:
    """Inverse of `to_original`, of a name with underscores for dots; None if it is no such name."""
    if flat in _ORIGINAL_SINGLE:
        return _ORIGINAL_SINGLE[flat]
    if found := re.fullmatch(r"input_blocks_(\d+)_0_op", flat):
        return f"down_blocks.{int(found[1]) // _PER_BLOCK - 1}.downsamplers.0.conv"
    if found := re.fullmatch(r"output_blocks_(\d+)_[12]_conv", flat):
        return f"up_blocks.{int(found[1]) // _PER_BLOCK}.upsamplers.0.conv"
    found = re.fullmatch(r"(?:(input|output)_blocks_(\d+)|middle_block)_([012])_(.+)", flat)
    if found is None:
        return None
    side, number, inner, rest = found[1], int(found[2] or 0), int(found[3]), found[4]
    if side is None:
        kind, place = ("attentions", "mid_block"), 0
        if inner != 1:
            kind, place = ("resnets", "mid_block"), inner // 2
    else:
        block, place = divmod(number - 1 if side == "input" else number, _PER_BLOCK)
        kind = ("attentions" if inner else "resnets", f"{'down' if side == 'input' else 'up'}_blocks.{block}")
    rest = _ORIGINAL_RESNET.get(rest) if kind[0] == "resnets" else unflatten(rest, WORDS)
    return rest and f"{kind[1]}.{kind[0]}.{place}.{rest}"


def unflatten(flat: str, words: tuple[str, ...]) -> str:
    """Dots for the underscores between names: "attn1_to_out_0" to "attn1.to_out.0"."""
    longest_first = sorted(words, key=len, reverse=True)
    return ".".join(re.findall(rf"(?:^|(?<=_))({'|'.join(longest_first)}|[^_]+)(?=_|$)", flat))
