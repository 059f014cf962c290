"""The real models' layers on the meta device, by the names that families give them, without weights or downloads."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

SD15 = {"cross_attention_dim": 768}
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DIT = {
    "sd3": {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    "sd3.5": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
}


@cache
def layers(name: str) -> dict[str, nn.Module]:
    """{layer: nn.Linear or nn.Conv2d} of a model; those with hcpdiff's own denoiser or a UNet have text encoders."""
    with torch.device("meta"):
        parts = _parts(name)
    found = {f"{part}.{path}": m for part, model in parts.items() for path, m in model.named_modules()}
    return {path: m for path, m in found.items() if isinstance(m, (nn.Linear, nn.Conv2d))}


def _parts(name: str) -> dict[str, nn.Module]:
    from diffusers import (
        PixArtTransformer2DModel,
        QwenImageTransformer2DModel,
        UNet2DConditionModel,
        ZImageTransformer2DModel,
    )

    alone = {
        "pixart": (PixArtTransformer2DModel, {"caption_channels": 4096}),
        "zimage": (ZImageTransformer2DModel, {}),
        "qwen_image": (QwenImageTransformer2DModel, {}),
    }
    if name in alone:
        kind, config = alone[name]
        return {"denoiser": kind(**config)}
    if name == "sd":
        return {"denoiser": UNet2DConditionModel(**SD15), "text_encoders.clip": _clip(768, 12, projected=False)}
    clips = {"text_encoders.clip_l": _clip(768, 12, projected=name != "sdxl" and name != "flux")}
    if name == "sdxl":
        clips["text_encoders.clip_g"] = _clip(1280, 32, projected=True)
        return {"denoiser": UNet2DConditionModel(**SDXL), **clips}
    clips["text_encoders.t5"] = _t5()
    if name == "flux":
        from hcpdiff.models.flux.transformer import FluxConfig, FluxTransformer

        return {"denoiser": FluxTransformer(FluxConfig(guidance_embeds=True)), **clips}
    from hcpdiff.models.sd3.transformer import MMDiT, MMDiTConfig

    clips["text_encoders.clip_g"] = _clip(1280, 32, projected=True)
    return {"denoiser": MMDiT(MMDiTConfig.from_dict(DIT[name])), **clips}


def _clip(width: int, depth: int, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth, num_attention_heads=width // 64
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    return T5EncoderModel(config)
