"""What a LoRA file's header says of it for other programs: kohya's `ss_*` and Stability's `modelspec.*`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hcpdiff.formats.changes import Changes

# {variant: (ss_base_model_version, modelspec.architecture)}, None where no other program has a name for it
VERSIONS: dict[str, tuple[str | None, str | None]] = {
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512"),
    "sd2-v": ("sd_v2_v", "stable-diffusion-v2-768-v"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    "sd3-medium": ("medium", "stable-diffusion-3-medium"),
    "sd3.5-medium": ("5-medium", "stable-diffusion-3-5-medium"),
    "sd3.5-large": ("5-large", "stable-diffusion-3-5-large"),
    "flux-dev": ("flux1", "flux-1-dev"),
    "flux-schnell": ("flux1", "flux-1-schnell"),
    "pixart": (None, None),
    "zimage": ("z_image", "Z-Image"),
    "qwen_image": ("qwen_image", "Qwen-Image"),
}
_IMPLEMENTATION = {
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux-dev": "https://github.com/black-forest-labs/flux",
    "flux-schnell": "https://github.com/black-forest-labs/flux",
    "zimage": "https://github.com/Tongyi-MAI/Z-Image",
    "qwen_image": "https://github.com/QwenLM/Qwen-Image",
}


def variant(family: str, config: Mapping[str, Any], prediction: str = "epsilon") -> str:
    """Which of `VERSIONS` a model is.

    Args:
        family: one of `names.ARCHITECTURES`.
        config: of its denoiser, by diffusers' names.
        prediction: of a UNet: epsilon or v_prediction.
    """
    if family == "sd":
        second = config.get("cross_attention_dim") == 1024
        return "sd2-v" if second and prediction == "v_prediction" else "sd2" if second else "sd1"
    if family == "sd3":
        if config.get("num_attention_heads", 0) >= 38:
            return "sd3.5-large"
        return "sd3.5-medium" if config.get("dual_attention_layers") else "sd3-medium"
    if family == "flux":
        return "flux-dev" if config.get("guidance_embeds") else "flux-schnell"
    return family


def network(updates: Changes) -> dict[str, str]:
    """What kohya's fields say of a LoRA or another form of LyCORIS itself."""
    plain = all(update.plain for update in updates.values())
    ranks, alphas = Counter(u.rank for u in updates.values()), Counter(u.scale * u.rank for u in updates.values())
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{next(iter(alphas)):g}" if len(alphas) == 1 else "Dynamic",
    }


def model(
    variant: str,
    kind: str = "lora",
    *,
    title: str,
    date: str | None = None,
    author: str | None = None,
    description: str | None = None,
    license: str | None = None,
    usage_hint: str | None = None,
    tags: Sequence[str] = (),
    trigger_words: Sequence[str] = (),
    resolution: tuple[int, int] | None = None,
    prediction: str | None = None,
    clip_skip: int = 0,
) -> dict[str, str]:
    """The fields that are known of what was trained, and for which model.

    Args:
        variant: one of `VERSIONS`.
        kind: "lora", "controlnet" or "textual-inversion".
        date: ISO 8601, e.g. "2026-01-31T12:00:00".
        resolution: (height, width), of the training.
        prediction: "epsilon" or "v_prediction"; None for flow models.
        clip_skip: how many of CLIP's last layers are left out.
    """
    version, architecture = VERSIONS[variant]
    fields: dict[str, str | None] = {
        "ss_base_model_version": version,
        "ss_v2": str(variant.startswith("sd2")),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/{kind}",
        "modelspec.implementation": _IMPLEMENTATION.get(variant, "diffusers"),
        "modelspec.title": title,
        "modelspec.date": date,
        "modelspec.author": author,
        "modelspec.description": description,
        "modelspec.license": license,
        "modelspec.usage_hint": usage_hint,
        "modelspec.tags": ", ".join(tags) or None,
        "modelspec.resolution": f"{resolution[1]}x{resolution[0]}" if resolution else None,
        "modelspec.trigger_phrase": ", ".join(trigger_words) or None,
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}.get(prediction or ""),
        "modelspec.encoder_layer": str(clip_skip + 1) if clip_skip else None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def data_hash(blocks: Iterable[bytes | memoryview]) -> dict[str, str]:
    """The SHA-256 of a safetensors file's tensors, whatever its header says."""
    found = _sha256(blocks)
    return {"sshs_model_hash": found, "modelspec.hash_sha256": f"0x{found}"}


def base_hash(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a model's single file, by which it is known in the ecosystem."""
    with path.open("rb") as file:
        found = _sha256(iter(partial(file.read, 1 << 20), b""))
    return {"ss_sd_model_name": path.name, "ss_new_sd_model_hash": found}


def _sha256(blocks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
