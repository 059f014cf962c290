"""A tiny Z-Image with random weights, shaped like the real one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.models.tiny import randomise, tiny_tokenizer

CHAT = "{% for m in messages %}u {{ m['content'] }} e {% endfor %}{% if add_generation_prompt %}a{% endif %}"


def tiny_zimage() -> Any:
    """A stock ZImagePipeline; images divide by 4."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(4, 8),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=1,
                mid_block_add_attention=False,
                use_quant_conv=False,
                use_post_quant_conv=False,
                scaling_factor=1.5,
                shift_factor=0.3,
            ),
            text_encoder=Qwen3Model(
                Qwen3Config(
                    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=3, **heads
                )
            ),
            tokenizer=tokenizer,
            transformer=ZImageTransformer2DModel(
                in_channels=4,
                dim=24,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                axes_dims=[4, 4, 4],
                axes_lens=[160, 32, 32],
            ),
        )
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, nn.Module):
            randomise(part.eval(), seed=i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
