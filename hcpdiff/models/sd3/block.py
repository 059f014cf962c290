"""One block of SD3's transformer: image and text tokens have their own weights and meet in one attention.

Layers are named as in diffusers, so adapters and files carry over: `attn.to_q`, `attn.add_q_proj`, `ff.net.0.proj` ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.models.attention import attention
from hcpdiff.models.fused import gated, heads_of, modulated_norm, rms_norm


class JointBlock(nn.Module):
    """Joint attention, then an MLP for each stream; time and pooled text shift, scale and gate every step (adaLN-Zero).

    Args:
        last: the text is only attended to and ends here ("context_pre_only").
        dual: the image also attends to itself alone (SD3.5 medium).
    """

    def __init__(self, dim: int, heads: int, *, last: bool = False, qk_norm: bool = False, dual: bool = False) -> None:
        super().__init__()
        self.last, self.dual = last, dual
        self.checkpoint_mlp = False  # run the MLPs again in backward instead of keeping what they computed
        self.norm1 = Modulation(dim, 9 if dual else 6)
        self.norm1_context = Modulation(dim, 2 if last else 6)
        self.attn = JointAttention(dim, heads, last=last, qk_norm=qk_norm)
        if dual:
            self.attn2 = SelfAttention(dim, heads, qk_norm=qk_norm)
        self.ff = MLP(dim)
        if not last:
            self.ff_context = MLP(dim)

    def forward(
        self, image: Tensor, text: Tensor, emb: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) image and (B, L, D) text tokens to the same; text is None after the last block.

        Args:
            emb: (B, D), silu of the embedded time and pooled text.
            bias: (B, 1, 1, N + L), added to the logits of each key.
        """
        shift, scale, gate, *mlp = self.norm1(emb)
        if self.last:
            text_scale, text_shift = self.norm1_context(emb)
        else:
            text_shift, text_scale, text_gate, *text_mlp = self.norm1_context(emb)

        attended, text_attended = self.attn(
            modulated_norm(image, shift, scale), modulated_norm(text, text_shift, text_scale), bias
        )
        if self.dual:
            *mlp, shift, scale, gate2 = mlp
            attended2 = self.attn2(modulated_norm(image, shift, scale))
        image = gated(image, gate, attended)
        if self.dual:
            image = gated(image, gate2, attended2)
        image = self._mlp(self.ff, image, *mlp)
        if self.last:
            return image, None
        text = gated(text, text_gate, text_attended)
        return image, self._mlp(self.ff_context, text, *text_mlp)

    def _mlp(self, mlp: nn.Module, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        def step(x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
            return gated(x, gate, mlp(modulated_norm(x, shift, scale)))

        if self.checkpoint_mlp and torch.is_grad_enabled():
            return checkpoint(step, x, shift, scale, gate, use_reentrant=False)
        return step(x, shift, scale, gate)


class Modulation(nn.Module):
    """The (B, D) embedding of time and pooled text to `count` shifts, scales and gates, each (B, 1, D)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, emb: Tensor) -> tuple[Tensor, ...]:
        return self.linear(emb).unflatten(-1, (self.count, 1, -1)).unbind(1)


class MLP(nn.Module):
    """Two layers, four times as wide between them, tanh-approximated GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(ProjectedGELU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ProjectedGELU(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class SelfAttention(nn.Module):
    """Attention of one stream to itself; `qk_norm` brings queries and keys of each head to one scale."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (HeadNorm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (B, N, D) tokens, (B, N, H, d) each."""
        query, key, value = heads_of(x, (self.to_q, self.to_k, self.to_v), self.head_dim)
        return self.norm_q(query), self.norm_k(key), value

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](attention(*self.project(x)))


class JointAttention(SelfAttention):
    """One attention over image and text tokens, each stream with its own projections."""

    def __init__(self, dim: int, heads: int, *, last: bool = False, qk_norm: bool = False) -> None:
        super().__init__(dim, heads, qk_norm=qk_norm)
        self.last = last
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_added_q, self.norm_added_k = (HeadNorm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))
        if not last:
            self.to_add_out = nn.Linear(dim, dim)

    def project_text(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = heads_of(x, (self.add_q_proj, self.add_k_proj, self.add_v_proj), self.head_dim)
        return self.norm_added_q(query), self.norm_added_k(key), value

    def forward(self, image: Tensor, text: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        both = [torch.cat(pair, dim=1) for pair in zip(self.project(image), self.project_text(text), strict=True)]
        image, text = attention(*both, bias).split_with_sizes([image.shape[1], text.shape[1]], dim=1)
        return self.to_out[0](image), None if self.last else self.to_add_out(text)


class HeadNorm(nn.Module):
    """RMS norm over the channels of a head, with a weight that all heads share."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)
