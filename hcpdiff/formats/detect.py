"""Which form a LoRA file has, and for which kind of model it is: from its keys and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

_LYCORIS = r"(?:hada_\w+|lokr_\w+|diff(?:_b)?|[wb]_norm|[ab][12]\.weight|oft_blocks|rescale|on_input|dora_scale)$"
FORMS = {  # {form: what a key of it looks like}
    "original": r"(?:\w+:)?.+\.___\.(?:layer\.|lora_|alpha)",
    "kohya": rf"(?:lora_(?:unet|te\d?|transformer)|lycoris)_[^.]+\.(?:lora_(?:down|up|mid)\.weight|alpha|{_LYCORIS})",
    "peft": r"base_model\.model\..+\.lora_[AB]\.(?:default\.)?(?:weight|bias)",
    "diffusers": r".+(?:\.lora_[AB](?:\.default)?(?:\.weight|\.bias)?|[._]lora(?:_linear_layer)?\.(?:down|up)\.weight"
    rf"|\.(?:{_LYCORIS}))",
}
OTHERS = {  # {what it is: a key}
    "a textual inversion": r"^(?:em[bp]_params|clip_[lg]|t5|t5xxl|<.+>)$",
    "a ControlNet": r"^(?:control_model\.|controlnet_)",
    "a whole model": r"^(?:model\.diffusion_model\.|first_stage_model\.|cond_stage_model\.)",
}
_UNET_CONTEXT = {768: "sd", 1024: "sd", 2048: "sdxl"}
_DIT_WIDTH = {1152: "pixart", 1536: "sd3", 2432: "sd3", 3072: "flux"}
_FLUX_BLOCKS = 19  # with two streams; Qwen-Image, as wide and with layers of the same names, has 60
_JOINT = r"(?:^|model\.|transformer[._])transformer_blocks"  # in no other block
_MARKS = {  # {family: what only its layers are called}, the first one counts
    "flux": r"single_(?:transformer_)?blocks|double_blocks",
    "zimage": r"(?:noise|context)_refiner|(?:^|[._])layers[._]\d+[._](?:attention|feed_forward|adaLN_modulation)[._]",
    "qwen_image": r"(?:img|txt)_(?:mlp|mod)[._]|lora_unet_transformer_blocks_",
    "pixart": rf"{_JOINT}[._]\d+[._]attn1|cross_attn[._](?:q|kv)_linear|adaln_single",
}


def form(keys: Iterable[str], where: str) -> str:
    """One of `FORMS`.

    Raises:
        ValueError: it is no LoRA that can be read; saying what it seems to be.
    """
    keys = list(keys)
    for name, pattern in FORMS.items():
        if any(re.fullmatch(pattern, key) or (name == "original" and re.match(pattern, key)) for key in keys):
            return name
    seems = [what for what, pattern in OTHERS.items() if any(re.search(pattern, key) for key in keys)]
    ends = Counter(key.rpartition(".")[2] for key in keys).most_common(3)
    found = " and ".join(seems) or (", ".join(f"{n} keys that end in {end!r}" for end, n in ends) or "nothing")
    raise ValueError(f"{where}: this is no LoRA of a known form; it holds {found}; first key: {keys[:1]}")


def family(tensors: Mapping[str, Tensor]) -> str | None:
    """One of `names.ARCHITECTURES`, or None where the file could be for several, as with text encoders alone."""
    text = "\n".join(tensors)
    for name, pattern in _MARKS.items():
        if re.search(pattern, text, re.MULTILINE):
            return name
    joint = re.search(rf"{_JOINT}|add_[qkv]_proj|ff_context", text, re.MULTILINE)
    width = _by_width(tensors) if joint else None
    if "joint_blocks" in text or (joint and width != "pixart" and re.search(r"attn2[._]to_[qkv]", text)):
        return "sd3"
    if width == "flux" and any(int(n) >= _FLUX_BLOCKS for n in re.findall(r"transformer_blocks[._](\d+)", text)):
        return "qwen_image"
    if joint:
        return width
    unet = re.search(r"(?:down|up|mid)_block|unet", text)
    if re.search(r"(?:input|output)_blocks_\d|middle_block_\d|transformer_blocks[._][1-9]", text):
        return "sdxl"
    if unet and re.search("lora_te2|text_encoder_2", text):
        return "sdxl"
    for key in tensors:
        found = re.match(r".*attn2[._](?:processor\.)?to_[kv]", key)
        if found and (width := _width(tensors, found[0])):
            return _UNET_CONTEXT.get(width)
    return "sd" if "lora_te_" in text else None


def _by_width(tensors: Mapping[str, Tensor]) -> str | None:
    for key in tensors:
        found = re.match(r".*(?:to_q|add_q_proj|to_out[._]0|to_add_out)", key)
        if found and (width := _width(tensors, found[0])):
            return _DIT_WIDTH.get(width)
    return None


def _width(tensors: Mapping[str, Tensor], module: str) -> int | None:
    """How many numbers go into a module's layer; None if its tensors do not say it."""
    own = {key.removeprefix(module): tensor for key, tensor in tensors.items() if key.startswith(module)}
    for end, tensor in own.items():
        if re.search(r"lora_down|lora_A|lora\.down|W_down|hada_w1_b|\.diff$|b2\.weight", end):
            return tensor.shape[1]
    halves = [t.shape[1] for end, t in own.items() if re.fullmatch(r"\.lokr_w[12](?:_b)?", end)]
    return halves[0] * halves[1] if len(halves) == 2 else None
