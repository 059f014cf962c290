"""SD3's multimodal diffusion transformer (arXiv:2403.03206), for SD3 medium, SD3.5 medium and SD3.5 large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcpdiff.formats.tensor_files.opening import DIFFUSERS, open_folder, present
from hcpdiff.models.attention import grid_embedding, key_bias, timestep_embedding
from hcpdiff.models.sd3.block import FinalModulation, JointBlock, Modulation
from hcpdiff.models.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class MMDiTConfig(TransformerConfig):
    """The shape of a model, by the names of diffusers' `transformer/config.json`; the defaults are SD3's first 2B."""

    sample_size: int = 128  # latent cells per side that the positions were made for
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096  # width of the text tokens
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96  # patches per side; smaller images use the centre
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: Literal["rms_norm"] | None = None

    def __post_init__(self) -> None:
        if self.caption_projection_dim != self.dim:
            raise ValueError(
                f"MMDiTConfig: caption_projection_dim is {self.caption_projection_dim}; it must equal "
                f"num_attention_heads * attention_head_dim = {self.dim}"
            )
        if self.dim % 4:
            raise ValueError(f"MMDiTConfig: the width {self.dim} must divide by 4, for the positions")
        if self.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"MMDiTConfig: qk_norm is {self.qk_norm!r}; it must be null or 'rms_norm'")


class MMDiT(Transformer):
    """Noisy latents, time and text to the flow that `FlowMatching` is trained on.

    A fresh model returns 0: modulations and the output layer start at zero, the rest from xavier's distribution.
    """

    config_class = MMDiTConfig
    diffusers_class = "SD3Transformer2DModel"

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config)
        dim, heads = config.dim, config.num_attention_heads
        self.pos_embed = PatchEmbed(config)
        self.time_text_embed = TimeTextEmbed(dim, config.pooled_projection_dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, dim)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(
                dim,
                heads,
                last=i == config.num_layers - 1,
                qk_norm=config.qk_norm is not None,
                dual=i in config.dual_attention_layers,
            )
            for i in range(config.num_layers)
        )
        self.norm_out = FinalModulation(dim)
        self.proj_out = nn.Linear(dim, config.patch_size**2 * (config.out_channels or config.in_channels))
        self.gradient_checkpointing("none")
        self._initialise(Modulation, FinalModulation)

    @classmethod
    def random(cls, folder: Path) -> MMDiT:
        """With random weights, but the folder's positions, which are not learned."""
        model = super().random(folder)
        if present(folder, DIFFUSERS):
            model.pos_embed.pos_embed.copy_(open_folder(folder, DIFFUSERS).read("pos_embed.pos_embed"))
        return model

    @property
    def blocks(self) -> list[JointBlock]:
        return cast("list[JointBlock]", list(self.transformer_blocks))

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        mask: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The predicted flow, noise - latents; (B, C, h, w) like the latents.

        Args:
            noisy_latents: (B, C, h, w); h and w divide by the patch size.
            timesteps: (B,) in [0, 1000], larger is noisier.
            tokens: (B, L, joint_attention_dim), the text.
            pooled: (B, pooled_projection_dim).
            mask: (B, L), how many tokens each text token counts for; None: one each, which is faster.
            control: (B, N, D) each, added to the image tokens after the blocks, spread evenly over them.
        """
        blocks = self.blocks
        image = self.pos_embed(noisy_latents)
        text = self.context_embedder(tokens)
        emb = F.silu(self.time_text_embed(timesteps, pooled))
        bias = None if mask is None else key_bias(mask, image.shape[1], image.dtype)
        for i, block in enumerate(blocks):
            image, text = self._run(i, block, image, text, emb, bias)
            if control is not None and text is not None:
                image = image + control[i * len(control) // len(blocks)]
        (step,) = self.norm_out(emb)
        return self._unpatch(self.proj_out(step.before(image)), noisy_latents.shape)

    def _unpatch(self, patches: Tensor, shape: torch.Size) -> Tensor:
        p = self.config.patch_size
        patches = patches.unflatten(1, (shape[-2] // p, shape[-1] // p)).unflatten(-1, (p, p, -1))
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, *shape[-2:])


class PatchEmbed(nn.Module):
    """Latents to one token per patch, with its position added."""

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.patch, self.grid = config.patch_size, config.pos_embed_max_size
        self.proj = nn.Conv2d(config.in_channels, config.dim, self.patch, self.patch)
        base = config.sample_size // self.patch
        self.register_buffer("pos_embed", grid_embedding(config.dim, self.grid, base)[None])

    def forward(self, latents: Tensor) -> Tensor:
        tokens = self.proj(latents).flatten(2).transpose(1, 2).contiguous()
        return tokens + self._positions(*latents.shape[-2:])

    def _positions(self, height: int, width: int) -> Tensor:
        rows, columns = height // self.patch, width // self.patch
        if height % self.patch or width % self.patch or max(rows, columns) > self.grid:
            raise ValueError(
                f"MMDiT: latents of {height} x {width}; sides must divide by {self.patch} "
                f"and be at most {self.grid * self.patch}"
            )
        top, left = (self.grid - rows) // 2, (self.grid - columns) // 2
        square = self.pos_embed.unflatten(1, (self.grid, self.grid))
        return square[:, top : top + rows, left : left + columns].flatten(1, 2)


class TimeTextEmbed(nn.Module):
    """Timesteps and pooled text to the one (B, D) vector that modulates every block."""

    def __init__(self, dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(256, dim)
        self.text_embedder = TwoLayers(pooled_dim, dim)

    def forward(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        time = timestep_embedding(timesteps, 256).to(pooled.dtype)
        return self.timestep_embedder(time) + self.text_embedder(pooled)


class TwoLayers(nn.Module):
    """Linear, SiLU, linear: (..., width) -> (..., dim), named as diffusers names them."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
