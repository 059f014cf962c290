"""FLUX.1's transformer: SD3's joint blocks, then blocks in which image and text share their weights; rotary positions.

There is no paper; https://github.com/black-forest-labs/flux is the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcpdiff.models.attention import key_bias, timestep_embedding
from hcpdiff.models.flux.block import SingleBlock
from hcpdiff.models.rope import rotation
from hcpdiff.models.sd3.block import FinalModulation, JointBlock, Modulation
from hcpdiff.models.sd3.transformer import TwoLayers
from hcpdiff.models.transformer import Transformer, TransformerConfig

HALF = 65504.0  # the largest float16


@dataclass(frozen=True)
class FluxConfig(TransformerConfig):
    """The shape of a model, by the names of diffusers' `transformer/config.json`; the defaults are FLUX.1 schnell's."""

    patch_size: int = 1  # of the latents as they are packed, 2 x 2 cells in one
    in_channels: int = 64  # packed
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096  # width of the text tokens
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False  # whether it is told a guidance scale, as dev is
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)  # channels of a head that turn by picture, row and column

    def __post_init__(self) -> None:
        if self.patch_size != 1:
            raise ValueError(f"FluxConfig: patch_size is {self.patch_size}; it must be 1, as latents come packed")
        if self.in_channels % 4 or self.out_channels not in (None, self.in_channels):
            raise ValueError(
                f"FluxConfig: in_channels {self.in_channels} and out_channels {self.out_channels} must be equal "
                "and divide by 4; models that also read a picture are another pipeline"
            )
        if len(self.axes_dims_rope) != 3 or any(size % 2 for size in self.axes_dims_rope):
            raise ValueError(
                f"FluxConfig: axes_dims_rope is {list(self.axes_dims_rope)}; it must be three even numbers"
            )
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"FluxConfig: axes_dims_rope sums up to {sum(self.axes_dims_rope)}; "
                f"it must be attention_head_dim = {self.attention_head_dim}"
            )


class FluxTransformer(Transformer):
    """Noisy latents, time and text to the flow that `FlowMatching` is trained on.

    A fresh model returns 0: modulations and the output layer start at zero, the rest from xavier's distribution.
    """

    config_class = FluxConfig
    diffusers_class = "FluxTransformer2DModel"

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        dim, heads = config.dim, config.num_attention_heads
        self.time_text_embed = TimeTextEmbed(dim, config.pooled_projection_dim, guidance=config.guidance_embeds)
        self.context_embedder = nn.Linear(config.joint_attention_dim, dim)
        self.x_embedder = nn.Linear(config.in_channels, dim)
        self.transformer_blocks = nn.ModuleList(JointBlock(dim, heads, qk_norm=True) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(dim, heads) for _ in range(config.num_single_layers))
        self.norm_out = FinalModulation(dim)
        self.proj_out = nn.Linear(dim, config.in_channels)
        self.gradient_checkpointing("none")
        self._initialise(Modulation, FinalModulation)

    @property
    def blocks(self) -> list[JointBlock | SingleBlock]:
        """All blocks, in the order in which they run."""
        return cast("list[Any]", [*self.transformer_blocks, *self.single_transformer_blocks])

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The predicted flow, noise - latents; (B, C, h, w) like the latents.

        Args:
            noisy_latents: (B, C, h, w), not packed; h and w are even.
            timesteps: (B,) in [0, 1000], larger is noisier.
            tokens: (B, L, joint_attention_dim), the text.
            pooled: (B, pooled_projection_dim).
            guidance: (B,), the scale that a model with `guidance_embeds` imitates, e.g. 3.5; None for others.
            mask: (B, L), how many tokens each text token counts for; None: one each, which is faster.
        """
        image = self.x_embedder(packed(noisy_latents))
        text = self.context_embedder(tokens)
        emb = F.silu(self.time_text_embed(timesteps, pooled, guidance))
        count, (rows, columns) = image.shape[1], (side // 2 for side in noisy_latents.shape[-2:])
        turn = rotation(rows, columns, self.config.axes_dims_rope, text=text.shape[1], device=image.device)
        bias = None if mask is None else key_bias(mask, count, image.dtype)
        for i, block in enumerate(self.transformer_blocks):
            image, text = self._run(i, block, image, text, emb, bias, turn[:count])
            text = within_half(text)
        x = torch.cat([image, text], dim=1)
        for i, block in enumerate(self.single_transformer_blocks, len(self.transformer_blocks)):
            x = within_half(self._run(i, block, x, emb, turn, bias))
        (step,) = self.norm_out(emb)
        return unpacked(self.proj_out(step.before(x[:, :count])), rows, columns)


class TimeTextEmbed(nn.Module):
    """Timesteps, pooled text and perhaps the guidance scale to the one (B, D) vector that modulates every block."""

    def __init__(self, dim: int, pooled_dim: int, *, guidance: bool) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(256, dim)
        self.guidance_embedder = TwoLayers(256, dim) if guidance else None
        self.text_embedder = TwoLayers(pooled_dim, dim)

    def forward(self, timesteps: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        if (guidance is None) != (self.guidance_embedder is None):
            reads = "reads no guidance scale" if guidance is not None else "needs a guidance scale, e.g. 3.5"
            raise ValueError(f"FluxTransformer: by its config this model {reads}")
        emb = self.timestep_embedder(timestep_embedding(timesteps, 256).to(pooled.dtype))
        if self.guidance_embedder is not None and guidance is not None:
            emb = emb + self.guidance_embedder(timestep_embedding(1000 * guidance, 256).to(pooled.dtype))
        return emb + self.text_embedder(pooled)


def packed(latents: Tensor) -> Tensor:
    """(B, C, h, w) latents to one token per 2 x 2 cells, row by row, (B, h / 2 * w / 2, 4 * C)."""
    height, width = latents.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"FluxTransformer: latents of {height} x {width}; both sides must be even")
    cells = latents.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (B, C, rows, 2, columns, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of `packed`."""
    cells = tokens.unflatten(1, (rows, columns)).unflatten(-1, (-1, 2, 2))  # (B, rows, columns, C, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def within_half(x: Tensor) -> Tensor:
    """In float16, clipped to its range, which text tokens of FLUX leave."""
    return x.clamp(-HALF, HALF) if x.dtype == torch.float16 else x
