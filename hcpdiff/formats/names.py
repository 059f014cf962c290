"""Which layers of a model a name in a file means, per architecture, and what files call a layer.

A layer is `<part>.<path>`: the part of a family ("denoiser", "text_encoders.clip_l"), the path as diffusers and
transformers call it. CLIP's layers always start with `text_model.` in files; a newer transformers has no such level.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from hcpdiff.formats import dit_names, unet_names
from hcpdiff.formats.dit_names import Original, Table

TEXT_WORDS = (
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection", "final_layer_norm"),
    *("layer_norm", "layer_norm1", "layer_norm2", "token_embedding", "position_embedding", "wi_0", "wi_1"),
    *("relative_attention_bias", "language_model", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
TEXT_ROOTS = re.compile(
    r"text_model\.(?:encoder\.layers\.\d+\.|embeddings\.).+|encoder\.block\.\d+\..+|text_projection"
    r"|text_model\.final_layer_norm|encoder\.final_layer_norm|shared"
    r"|(?:model\.language_model\.)?layers\.\d+\..+"
)
_LEGACY = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
}  # of CLIP, in old diffusers files


@dataclass(frozen=True)
class Architecture:
    """What files say and need to know about one kind of model."""

    name: str
    pipelines: str  # how diffusers' names of its pipelines begin
    folders: Mapping[str, str]  # {part: its folder in diffusers' pipeline, and its prefix in diffusers' files}
    kohya: Mapping[str, str]  # {part: prefix in kohya's files}
    form: Literal["kohya", "diffusers"]  # what most programs can load
    more: Mapping[str, str]  # {prefix: part}: what other programs write
    roots: re.Pattern[str] = unet_names.ROOTS  # the denoiser's layers as diffusers calls them
    table: Table | None = None  # a transformer's layers in the original code, where they differ
    original: bool = False  # whether kohya calls the denoiser's layers as the original code does

    @property
    def unet(self) -> bool:
        """Whether the denoiser is one."""
        return self.folders["denoiser"] == "unet"

    def prefixes(self) -> dict[str, str]:
        """{prefix: part} of all files that are understood, the longest first."""
        known = {f"{name}.": part for part, name in self.folders.items()}
        known |= {f"{name}_": part for part, name in self.kohya.items()}
        known |= {"diffusion_model.": "denoiser", "base_model.model.": "denoiser", "lycoris_": "denoiser"}
        known |= {"lora_transformer_": "denoiser", "transformer.": "denoiser", "unet.": "denoiser"}
        known |= {f"{part}.": part for part in self.folders if part != "denoiser"}
        known |= self.more
        return {prefix: known[prefix] for prefix in sorted(known, key=len, reverse=True)}


def _comfyui(**parts: str) -> dict[str, str]:
    return {f"text_encoders.{name}.transformer.": f"text_encoders.{part}" for name, part in parts.items()}


ARCHITECTURES = {
    "sd": Architecture(
        "sd",
        pipelines="StableDiffusion",
        folders={"denoiser": "unet", "text_encoders.clip": "text_encoder"},
        kohya={"denoiser": "lora_unet", "text_encoders.clip": "lora_te"},
        form="kohya",
        more={"lora_te1_": "text_encoders.clip", **_comfyui(clip_l="clip", clip_h="clip")},
    ),
    "sdxl": Architecture(
        "sdxl",
        pipelines="StableDiffusionXL",
        folders={"denoiser": "unet", "text_encoders.clip_l": "text_encoder", "text_encoders.clip_g": "text_encoder_2"},
        kohya={"denoiser": "lora_unet", "text_encoders.clip_l": "lora_te1", "text_encoders.clip_g": "lora_te2"},
        form="kohya",
        more=_comfyui(clip_l="clip_l", clip_g="clip_g"),
        original=True,
    ),
    "sd3": Architecture(
        "sd3",
        pipelines="StableDiffusion3",
        folders={
            "denoiser": "transformer",
            "text_encoders.clip_l": "text_encoder",
            "text_encoders.clip_g": "text_encoder_2",
            "text_encoders.t5": "text_encoder_3",
        },
        kohya={
            "denoiser": "lora_unet",
            "text_encoders.clip_l": "lora_te1",
            "text_encoders.clip_g": "lora_te2",
            "text_encoders.t5": "lora_te3",
        },
        form="diffusers",
        more=_comfyui(clip_l="clip_l", clip_g="clip_g", t5xxl="t5"),
        roots=dit_names.ROOTS,
        table=dit_names.SD3,
        original=True,
    ),
    "flux": Architecture(
        "flux",
        pipelines="Flux",
        folders={
            "denoiser": "transformer",
            "text_encoders.clip_l": "text_encoder",
            "text_encoders.t5": "text_encoder_2",
        },
        kohya={"denoiser": "lora_unet", "text_encoders.clip_l": "lora_te1", "text_encoders.t5": "lora_te3"},
        form="diffusers",
        more={"lora_te2_": "text_encoders.t5", **_comfyui(clip_l="clip_l", t5xxl="t5")},
        roots=dit_names.ROOTS,
        table=dit_names.FLUX,
        original=True,
    ),
    "pixart": Architecture(
        "pixart",
        pipelines="PixArtSigma",
        folders={"denoiser": "transformer", "text_encoders.t5": "text_encoder"},
        kohya={},
        form="diffusers",
        more={"lora_unet_": "denoiser", "unet.base_model.model.": "denoiser"},
        roots=dit_names.PIXART_ROOTS,
        table=dit_names.PIXART,
    ),
    "zimage": Architecture(
        "zimage",
        pipelines="ZImage",
        folders={"denoiser": "transformer", "text_encoders.qwen": "text_encoder"},
        kohya={"denoiser": "lora_unet"},
        form="diffusers",
        more={"text_encoders.qwen3_4b.transformer.model.": "text_encoders.qwen"},
        roots=dit_names.ZIMAGE_ROOTS,
        table=dit_names.ZIMAGE,
    ),
    "qwen_image": Architecture(
        "qwen_image",
        pipelines="QwenImage",
        folders={"denoiser": "transformer", "text_encoders.qwen": "text_encoder"},
        kohya={"denoiser": "lora_unet"},
        form="diffusers",
        more={},
        roots=dit_names.QWEN_IMAGE_ROOTS,
    ),
}


def of_pipeline(name: str) -> Architecture | None:
    """By the name of one of its pipelines in diffusers."""
    known = sorted(ARCHITECTURES.values(), key=lambda arch: len(arch.pipelines), reverse=True)
    return next((arch for arch in known if name.startswith(arch.pipelines)), None)


def architecture(name: str) -> Architecture:
    """By its name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"family: {name!r} is not known to LoRA files; use one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def part_of(layer: str, folders: Mapping[str, str]) -> tuple[str, str] | None:
    """A layer's part and its path there; None if it is in none of these parts."""
    for part in folders:
        if layer.startswith(f"{part}."):
            return part, layer.removeprefix(f"{part}.")
    return None


def canonical(layer: str) -> str:
    """A layer of a live model as files call it: with `text_model.`, whatever transformers has."""
    return re.sub(
        r"^(text_encoders\.clip\w*\.)(?=encoder\.layers\.|embeddings\.|final_layer_norm)", r"\1text_model.", layer
    )


def live(layer: str, exists: Callable[[str], bool]) -> str | None:
    """Inverse of `canonical`, for a model of which `exists` knows the layers; None if it has no such layer."""
    for path in (layer, layer.replace(".text_model.", ".", 1)):
        if exists(path):
            return path
    return None


def to_diffusers(arch: Architecture, layer: str) -> str | None:
    """What diffusers' files call a layer: `unet.down_blocks.0...`; None if it is in no part that they have."""
    found = part_of(canonical(layer), arch.folders)
    return found and f"{arch.folders[found[0]]}.{found[1]}"


def to_kohya(arch: Architecture, layer: str) -> tuple[str, Original] | None:
    """What kohya's files call a layer, and which layers share this name; None if it has no name there."""
    found = part_of(canonical(layer), arch.folders)
    if found is None or found[0] not in arch.kohya:
        return None
    part, path = found
    original = Original(path, (path,), (1,))
    if part == "denoiser" and arch.original:
        known = dit_names.to_original(arch.table, path) if arch.table else _of_unet(unet_names.to_original(path), path)
        if known is None:
            return None
        original = known
    name = f"{arch.kohya[part]}_{original.name.replace('.', '_')}"
    return name, _within(part, original)


def _of_unet(name: str | None, path: str) -> Original | None:
    return None if name is None else Original(name, (path,), (1,))


def find(arch: Architecture, module: str) -> Original | None:
    """The layers that a name in any file means, several if it is a fused one; None if it means nothing known."""
    for prefix, part in arch.prefixes().items():
        if module.startswith(prefix):
            known = _find(arch, part, module.removeprefix(prefix), dotted=prefix.endswith("."))
            return known and _within(part, known)
    clips = [part for part in arch.folders if part.startswith("text_encoders.clip")]
    part = clips[0] if len(clips) == 1 and module.startswith("text_model.") else "denoiser"
    bare = _find(arch, part, module, dotted=True)
    return bare and _within(part, bare)


def _within(part: str, original: Original) -> Original:
    return Original(original.name, tuple(f"{part}.{path}" for path in original.layers), original.shares)


def _find(arch: Architecture, part: str, rest: str, *, dotted: bool) -> Original | None:
    if part != "denoiser":
        path = rest if dotted else unet_names.unflatten(rest, TEXT_WORDS)
        path = re.sub(r"(?<=self_attn\.)(to_\w+)$", lambda m: _LEGACY.get(m[1], m[1]), path)
        path = canonical(f"{part}.{path}").removeprefix(f"{part}.")
        return Original(path, (path,), (1,)) if TEXT_ROOTS.fullmatch(path) else None
    if arch.table is not None and (known := dit_names.from_original(arch.table, rest)):
        return known
    if arch.unet and (original := unet_names.from_original(rest.replace(".", "_"))):
        return Original(rest, (original,), (1,))
    words = unet_names.WORDS if arch.unet else dit_names.WORDS
    path = rest.replace(".processor.", ".") if dotted else unet_names.unflatten(rest, words)
    path = re.sub(r"(?<=\.)to_out$", "to_out.0", path)
    return Original(path, (path,), (1,)) if arch.roots.fullmatch(path) else None
