"""Tiny FLUX models with random weights, shaped like the real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.models.flux.transformer import FluxConfig, FluxTransformer
from tests.models.tiny import randomise, tiny_tokenizer

BASE = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 3,
    "joint_attention_dim": 28,
    "pooled_projection_dim": 8,
    "axes_dims_rope": [2, 4, 6],
}
SHAPES = {"schnell": BASE, "dev": BASE | {"guidance_embeds": True}}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64}


def tiny_flux(shape: str = "dev", **changes: object) -> FluxTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FluxTransformer(FluxConfig.from_dict(SHAPES[shape] | changes))
    randomise(model)
    return model


def flux_inputs(
    config: FluxConfig, *, batch: int = 2, size: tuple[int, int] = (12, 8), tokens: int = 5, seed: int = 1
) -> dict[str, Tensor]:
    """Arguments of `FluxTransformer.forward`, by name."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "noisy_latents": normal(batch, config.in_channels // 4, *size),
        "timesteps": torch.linspace(125, 875, batch),  # of these, diffusers' t / 1000 * 1000 is exact
        "tokens": normal(batch, tokens, config.joint_attention_dim),
        "pooled": normal(batch, config.pooled_projection_dim),
    }
    return inputs | ({"guidance": torch.linspace(1, 3.5, batch)} if config.guidance_embeds else {})


def tiny_flux_pipeline(shape: str = "dev", *, shift_factor: float = 0.3) -> Any:
    """A stock FluxPipeline; images divide by 4. The scheduler shifts as that of `shape` does, sooner."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    tokenizer = tiny_tokenizer()
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    clip = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 8, "num_attention_heads": 2}
    t5 = {"d_model": 28, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(**SHAPES[shape]),
            scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC if shape == "dev" else {"shift": 1.0})),
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
                shift_factor=shift_factor,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=12, **clip, **ids
                )
            ),
            tokenizer=tokenizer,
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **t5)),
            tokenizer_2=tokenizer,
        )
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, nn.Module):
            randomise(part.eval(), seed=i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
