"""FLUX's single block; its double block is SD3's `JointBlock` with rotary positions.

Layers are named as in diffusers, so adapters and files carry over: `attn.to_q`, `proj_mlp`, `proj_out` ...
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.models.attention import attention
from hcpdiff.models.fused import beside_gelu, making_again
from hcpdiff.models.sd3.block import Attention, Modulation


class SingleBlock(nn.Module):
    """Attention and an MLP beside each other, with one set of weights for image and text tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.checkpoint_mlp = False  # run the MLP again in backward instead of keeping what it computed
        self.norm = Modulation(dim, 1)
        self.attn = SingleAttention(dim, heads, qk_norm=True)
        self.proj_mlp = nn.Linear(dim, 4 * dim)
        self.proj_out = nn.Linear(5 * dim, dim)

    def forward(self, x: Tensor, emb: Tensor, rotation: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, N + L, D) tokens, those of the image first, to the same.

        Args:
            emb: (B, D), silu of the embedded time, text and guidance.
            rotation: (N + L, d / 2, 2), see `rope.rotation`.
            bias: (B, 1, 1, N + L), added to the logits of each key.
        """
        (step,) = self.norm(emb)
        normed = step.before(x)
        return step.after(x, self._joined(self.attn(normed, rotation, bias), normed))

    def _joined(self, attended: Tensor, normed: Tensor) -> Tensor:
        def joined(attended: Tensor, normed: Tensor) -> Tensor:
            return self.proj_out(beside_gelu(attended, self.proj_mlp(normed)))

        if self.checkpoint_mlp and torch.is_grad_enabled():
            return checkpoint(joined, attended, normed, use_reentrant=False)
        if any(p.requires_grad for layer in (self.proj_mlp, self.proj_out) for p in layer.parameters()):
            return joined(attended, normed)
        with making_again():  # what is attached to frozen layers wants their input: save the memory
            return joined(attended, normed)


class SingleAttention(Attention):
    """Attention of all tokens to each other; `SingleBlock.proj_out` is its output layer."""

    def forward(self, x: Tensor, rotation: Tensor, bias: Tensor | None = None) -> Tensor:
        return attention(*self.project(x, rotation), bias=bias)
