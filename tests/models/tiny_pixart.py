"""A tiny PixArt-Sigma with random weights, shaped like the real one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.models.tiny import randomise, tiny_tokenizer


def tiny_pixart(*, spacing: str = "leading") -> Any:
    """A stock PixArtSigmaPipeline; images divide by 4."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = tiny_tokenizer()
    t5 = {"d_model": 28, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = PixArtSigmaPipeline(
            tokenizer=tokenizer,
            text_encoder=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **t5)),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(4, 8),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=1,
                scaling_factor=0.5,
            ),
            transformer=PixArtTransformer2DModel(
                sample_size=8,
                num_layers=3,
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=16,
                caption_channels=28,
                patch_size=2,
                use_additional_conditions=False,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_schedule="linear",
                beta_start=0.0001,
                beta_end=0.02,
                timestep_spacing=spacing,
                steps_offset=1,
            ),
        )
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, nn.Module):
            randomise(part.eval(), seed=i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
