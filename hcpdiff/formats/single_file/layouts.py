"""The kinds of single files: which keys mark them, and where each part of the model is in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hcpdiff.formats.single_file import dit, ldm, text
from hcpdiff.formats.single_file.table import MakeTable, Shapes

CONFIGS = Path(__file__).parent / "configs"  # <layout>/<part>/config.json of the published models


@dataclass(frozen=True)
class Part:
    """One model in a file.

    Args:
        path: of the model in its family.
        prefixes: of its keys; the first is written.
        skips: keys after the prefix that hold no weights that are used.
        rename: another name for a key after the prefix, where files differ.
    """

    path: str
    prefixes: tuple[str, ...]
    table: MakeTable
    skips: str = ""
    rename: Callable[[str], str] = str

    def keys(self, shapes: Shapes) -> dict[str, str]:
        """{key without prefix: key in the file}; empty if the file has no such part."""
        for prefix in self.prefixes:
            found = {self.rename(key.removeprefix(prefix)): key for key in shapes if key.startswith(prefix)}
            found = {name: key for name, key in found.items() if not re.fullmatch(self.skips, name)}
            if found:
                return found
        return {}


@dataclass(frozen=True)
class Layout:
    """One kind of model.

    Args:
        pipeline: diffusers' class of it.
        parts: by the folder that diffusers puts them in.
        scheduler: what differs from the family's default.
    """

    name: str
    title: str
    pipeline: str
    parts: Mapping[str, Part]
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def configs(self) -> Path:
        """The folder of the published model's configs."""
        return CONFIGS / self.name


_DENOISER = "model.diffusion_model."
_CLIP_SKIPS = r"(text_model\.)?(embeddings\.)?position_ids|logit_scale"
_OPEN_SKIPS = _CLIP_SKIPS + r"|attn_mask"


def _unet(*texts: tuple[str, Part]) -> dict[str, Part]:
    return {
        "unet": Part("denoiser", (_DENOISER,), ldm.unet),
        **dict(texts),
        "vae": Part("vae", ("first_stage_model.",), ldm.vae, skips=r"(loss|model_ema)\..+"),
    }


def _clip(path: str, prefix: str, skips: str = "") -> Part:
    return Part(f"text_encoders.{path}", (prefix,), text.clip, f"{_CLIP_SKIPS}{skips}", text.clip_name)


def _t5(prefix: str) -> Part:
    return Part("text_encoders.t5", (prefix,), text.t5, rename=text.t5_name)


# transformers reads the last but one layer of SD 2's OpenCLIP, so the last one is not there; no projection is used.
_SD2_SKIPS = _OPEN_SKIPS + r"|text_projection|transformer\.resblocks\.23\..+"
_SD1 = _unet(("text_encoder", _clip("clip", "cond_stage_model.transformer.")))
_SD2 = _unet(("text_encoder", Part("text_encoders.clip", ("cond_stage_model.model.",), text.open_clip, _SD2_SKIPS)))
_SDXL = _unet(
    ("text_encoder", _clip("clip_l", "conditioner.embedders.0.transformer.", r"|text_projection(\.weight)?")),
    ("text_encoder_2", Part("text_encoders.clip_g", ("conditioner.embedders.1.model.",), text.open_clip, _OPEN_SKIPS)),
)
_SD3 = {
    "transformer": Part("denoiser", (_DENOISER, ""), dit.sd3),
    "text_encoder": _clip("clip_l", "text_encoders.clip_l.transformer."),
    "text_encoder_2": _clip("clip_g", "text_encoders.clip_g.transformer."),
    "text_encoder_3": _t5("text_encoders.t5xxl.transformer."),
    "vae": Part("vae", ("first_stage_model.", "vae."), ldm.vae, skips=r"loss\..+"),
}
_FLUX = {
    "transformer": Part("denoiser", (_DENOISER, ""), dit.flux),
    "text_encoder": _clip("clip_l", "text_encoders.clip_l.transformer.", r"|text_projection(\.weight)?"),
    "text_encoder_2": _t5("text_encoders.t5xxl.transformer."),
    "vae": Part("vae", ("vae.", "first_stage_model."), ldm.vae, skips=r"loss\..+"),
}
_STATIC = {"use_dynamic_shifting": False, "shift": 1.0}

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("sd1", "Stable Diffusion 1.x", "StableDiffusionPipeline", _SD1),
        Layout("sd2", "Stable Diffusion 2.x", "StableDiffusionPipeline", _SD2, {"prediction_type": "v_prediction"}),
        Layout("sdxl", "Stable Diffusion XL", "StableDiffusionXLPipeline", _SDXL),
        Layout("sd3-medium", "Stable Diffusion 3 medium", "StableDiffusion3Pipeline", _SD3),
        Layout("sd3.5-medium", "Stable Diffusion 3.5 medium", "StableDiffusion3Pipeline", _SD3),
        Layout("sd3.5-large", "Stable Diffusion 3.5 large", "StableDiffusion3Pipeline", _SD3),
        Layout("flux-dev", "FLUX.1 dev", "FluxPipeline", _FLUX),
        Layout("flux-schnell", "FLUX.1 schnell", "FluxPipeline", _FLUX, _STATIC),
    )
}


def recognise(shapes: Shapes, where: str | Path) -> Layout:
    """The layout of a file by its keys and shapes.

    Raises:
        ValueError: it is none that is known.
    """
    names = {key.removeprefix(_DENOISER): key for key in shapes}
    if "joint_blocks.0.context_block.attn.qkv.weight" in names:
        if "joint_blocks.0.x_block.attn.ln_q.weight" not in names:
            return LAYOUTS["sd3-medium"]
        return LAYOUTS["sd3.5-medium" if "joint_blocks.0.x_block.attn2.qkv.weight" in names else "sd3.5-large"]
    if "double_blocks.0.img_attn.qkv.weight" in names:
        return LAYOUTS["flux-dev" if "guidance_in.in_layer.weight" in names else "flux-schnell"]
    if names.get("input_blocks.0.0.weight", "").startswith(_DENOISER):
        return LAYOUTS[_unet_kind(shapes, where)]
    raise ValueError(
        f"{where}: {_other(shapes)}; a whole model's file has {_DENOISER}input_blocks.0.0.weight "
        "(Stable Diffusion, XL), joint_blocks.0... (SD3) or double_blocks.0... (FLUX)"
    )


def _unet_kind(shapes: Shapes, where: str | Path) -> str:
    kinds = {
        "conditioner.embedders.1.": "sdxl",
        "cond_stage_model.model.": "sd2",
        "cond_stage_model.transformer.": "sd1",
    }
    if any(key.startswith("conditioner.embedders.0.model.") for key in shapes):
        raise ValueError(f"{where}: this is the refiner of Stable Diffusion XL, which is not supported; use its base")
    for prefix, kind in kinds.items():
        if any(key.startswith(prefix) for key in shapes):
            return kind
    widths = sorted({shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight")})
    by_width = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
    if len(widths) == 1 and (kind := by_width.get(widths[0])):
        return kind
    raise ValueError(
        f"{where}: a UNet that reads text of width {widths}, without text encoders; "
        f"expected {', '.join(map(str, by_width))} (Stable Diffusion 1, 2, XL)"
    )


def _other(shapes: Shapes) -> str:
    """What a file that is no whole model seems to be."""
    some = ", ".join(sorted(shapes)[:3])
    if any("lora_" in key or ".hada_" in key or ".lokr_" in key for key in shapes):
        return f"this is an adapter such as a LoRA ({some}, ...), no model: list it under plugins"
    if any(re.match(r"(down_blocks|transformer_blocks|encoder\.down_blocks)\.0\.", key) for key in shapes):
        return f"these are the weights of one part in diffusers' layout ({some}, ...): give the folder of the pipeline"
    return f"no known model in {len(shapes)} tensors ({some or 'none'}, ...)"
