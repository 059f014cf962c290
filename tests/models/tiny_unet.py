"""Stock pipelines around a tiny UNet with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.models.tiny import randomise, tiny_tokenizer

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def tiny_sd(prediction: str = "epsilon", *, zero_terminal_snr: bool = False) -> Any:
    """A StableDiffusionPipeline; images divide by 4."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            unet=UNet2DConditionModel(**UNET, cross_attention_dim=8),
            text_encoder=_clip(8, projected=False),
            tokenizer=tiny_tokenizer(),
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                prediction_type=prediction,
                timestep_spacing="leading",
                steps_offset=1,
                rescale_betas_zero_snr=zero_terminal_snr,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _randomised(pipeline)


def tiny_sdxl() -> Any:
    """A StableDiffusionXLPipeline; images divide by 4."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            **UNET,
            cross_attention_dim=24,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
            use_linear_projection=True,
            transformer_layers_per_block=2,
        )
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(),
            unet=unet,
            text_encoder=_clip(8, projected=False),
            text_encoder_2=_clip(16, projected=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                timestep_spacing="leading",
                steps_offset=1,
            ),
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    return _randomised(pipeline)


def _vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        scaling_factor=0.5,
    )


def _clip(width: int, *, projected: bool) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        max_position_embeddings=12,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_attention_heads=2,
        **{f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")},
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _randomised(pipeline: Any) -> Any:
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, nn.Module):
            randomise(part.eval(), seed=i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
