"""Tiny models with random weights, shaped like the real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.models.sd3.transformer import MMDiT, MMDiTConfig

BASE = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 12,
}
SHAPES = {
    "sd3-medium": BASE,
    "sd3.5-medium": BASE | {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1]},
    "sd3.5-large": BASE | {"qk_norm": "rms_norm", "num_layers": 4},
}


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.05) -> None:
    """Random values everywhere, zeros and ones included, so that no part of a model hides behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def tiny_mmdit(shape: str = "sd3-medium", **changes: object) -> MMDiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MMDiT(MMDiTConfig.from_dict(SHAPES[shape] | changes))
    randomise(model)
    return model


def mmdit_inputs(
    config: MMDiTConfig, *, batch: int = 2, size: tuple[int, int] = (12, 8), tokens: int = 5, seed: int = 1
) -> dict[str, Tensor]:
    """Arguments of `MMDiT.forward`, by name."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "noisy_latents": normal(batch, config.in_channels, *size),
        "timesteps": torch.rand(batch, generator=generator) * 1000,
        "tokens": normal(batch, tokens, config.joint_attention_dim),
        "pooled": normal(batch, config.pooled_projection_dim),
    }


def tiny_tokenizer(max_length: int = 12) -> Any:
    """CLIP's byte-level BPE over single letters."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=max_length)


def tiny_pipeline(*, t5: bool = False, shift_factor: float | None = 0.3, shape: str = "sd3-medium") -> Any:
    """A stock StableDiffusion3Pipeline with random weights. Its text is 8 + 16 wide, of the denoiser's 24 or 28."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    tokenizer = tiny_tokenizer()
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}

    def clip(width: int) -> nn.Module:
        sizes = {"hidden_size": width, "intermediate_size": 16, "projection_dim": width, "num_attention_heads": 2}
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), num_hidden_layers=3, max_position_embeddings=12, **sizes, **ids
        )
        return CLIPTextModelWithProjection(config)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        third = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=28, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                **SHAPES[shape] | {"joint_attention_dim": 28, "pooled_projection_dim": 24}
            ),
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
                shift_factor=shift_factor,
            ),
            text_encoder=clip(8),
            tokenizer=tokenizer,
            text_encoder_2=clip(16),
            tokenizer_2=tokenizer,
            text_encoder_3=third if t5 else None,
            tokenizer_3=tokenizer if t5 else None,
        )
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, nn.Module):
            randomise(part.eval(), seed=i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
