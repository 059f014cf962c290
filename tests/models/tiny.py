"""Tiny models with random weights, shaped like the real ones."""

from __future__ import annotations

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
    model = MMDiT(MMDiTConfig.from_dict(SHAPES[shape] | changes), generator=torch.Generator().manual_seed(0))
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
