"""One block of SD3's transformer, FLUX's double block: image and text have their own weights and meet in attention.

Layers are named as in diffusers, so adapters and files carry over: `attn.to_q`, `attn.add_q_proj`, `ff.net.0.proj` ...
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.models.attention import attention
from hcpdiff.models.fused import gated, gelu, heads_of, making_again, modulated_norm, rms_norm
from hcpdiff.models.rope import rotated


class JointBlock(nn.Module):
    """Joint attention, then an MLP for each stream; time and pooled text modulate every step (adaLN-Zero).

    Args:
        last: the text is only attended to and ends here ("context_pre_only").
        dual: the image also attends to itself alone (SD3.5 medium).
    """

    def __init__(self, dim: int, heads: int, *, last: bool = False, qk_norm: bool = False, dual: bool = False) -> None:
        super().__init__()
        self.last = last
        self.checkpoint_mlp = False  # run the MLPs again in backward instead of keeping what they computed
        self.norm1 = Modulation(dim, 3 if dual else 2)
        self.norm1_context = FinalModulation(dim) if last else Modulation(dim, 2)
        self.attn = JointAttention(dim, heads, last=last, qk_norm=qk_norm)
        if dual:
            self.attn2 = SelfAttention(dim, heads, qk_norm=qk_norm)
        self.ff = MLP(dim)
        if not last:
            self.ff_context = MLP(dim)

    def forward(
        self, image: Tensor, text: Tensor, emb: Tensor, bias: Tensor | None = None, rotation: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) image and (B, L, D) text tokens to the same; text is None after the last block.

        Args:
            emb: (B, D), silu of the embedded time and pooled text.
            bias: (B, 1, 1, N + L), added to the logits of each key.
            rotation: (N, d / 2, 2), of the image tokens by where they are; see `rope.rotation`. None: they are told
                where they are before the first block.
        """
        step, mlp_step, *dual = self.norm1(emb)
        text_step, *text_mlp_step = self.norm1_context(emb)
        attended, text_attended = self.attn(step.before(image), text_step.before(text), bias, rotation)
        attended_alone = [self.attn2(other.before(image)) for other in dual]
        image = step.after(image, attended)
        for other, update in zip(dual, attended_alone, strict=True):
            image = other.after(image, update)
        image = self._mlp(self.ff, image, mlp_step)
        if self.last:
            return image, None
        text = text_step.after(text, text_attended)
        return image, self._mlp(self.ff_context, text, *text_mlp_step)

    def _mlp(self, mlp: nn.Module, x: Tensor, step: Step) -> Tensor:
        def updated(x: Tensor) -> Tensor:
            return step.after(x, mlp(step.before(x)))

        if self.checkpoint_mlp and torch.is_grad_enabled():
            return checkpoint(updated, x, use_reentrant=False)
        if any(p.requires_grad for p in mlp.parameters()):
            return updated(x)
        with making_again():  # what is attached to frozen layers wants their input: save the memory
            return updated(x)


class Step(NamedTuple):
    """How time and text modulate one step of a stream, (B, 1, D) each; no gate where the stream ends."""

    shift: Tensor
    scale: Tensor
    gate: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        return modulated_norm(x, self.shift, self.scale)

    def after(self, x: Tensor, update: Tensor | None) -> Tensor:
        return x if self.gate is None or update is None else gated(x, self.gate, update)


class Modulation(nn.Module):
    """The (B, D) embedding of time and pooled text to the modulation of each of `steps` steps."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.count = 3 * steps
        self.linear = nn.Linear(dim, self.count * dim)

    def forward(self, emb: Tensor) -> list[Step]:
        values = self.linear(emb).unflatten(-1, (self.count, 1, -1)).unbind(1)
        return [Step(*values[i : i + 3]) for i in range(0, self.count, 3)]


class FinalModulation(nn.Module):
    """The same for where a stream ends, without a gate; its layer gives the scale first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, emb: Tensor) -> list[Step]:
        scale, shift = self.linear(emb).unflatten(-1, (2, 1, -1)).unbind(1)
        return [Step(shift, scale)]


class MLP(nn.Module):
    """Two layers, four times as wide between them, tanh-approximated GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(ProjectedGELU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ProjectedGELU(nn.Module):
    """A linear layer and GELU after it, named as diffusers names them."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x))


class Attention(nn.Module):
    """Queries, keys and values of the image; `qk_norm` brings queries and keys of each head to one scale."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (HeadNorm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) tokens to (B, N, H, d) each."""
        query, key, value = heads_of(x, (self.to_q, self.to_k, self.to_v), self.head_dim)
        query, key = self.norm_q(query), self.norm_k(key)
        if rotation is not None:
            query, key = rotated(query, rotation), rotated(key, rotation)
        return query, key, value


class SelfAttention(Attention):
    """Attention of the image to itself."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__(dim, heads, qk_norm=qk_norm)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, image: Tensor) -> Tensor:
        return self.to_out[0](attention(*self.project(image)))


class JointAttention(Attention):
    """One attention over image and text tokens, each stream with its own projections."""

    def __init__(self, dim: int, heads: int, *, last: bool = False, qk_norm: bool = False) -> None:
        super().__init__(dim, heads, qk_norm=qk_norm)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.last = last
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_added_q, self.norm_added_k = (HeadNorm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))
        if not last:
            self.to_add_out = nn.Linear(dim, dim)

    def project_text(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = heads_of(x, (self.add_q_proj, self.add_k_proj, self.add_v_proj), self.head_dim)
        return self.norm_added_q(query), self.norm_added_k(key), value

    def forward(
        self, image: Tensor, text: Tensor, bias: Tensor | None = None, rotation: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        streams = zip(self.project(image, rotation), self.project_text(text), strict=True)
        both = [torch.cat(pair, dim=1) for pair in streams]
        image, text = attention(*both, bias=bias).split_with_sizes([image.shape[1], text.shape[1]], dim=1)
        return self.to_out[0](image), None if self.last else self.to_add_out(text)


class HeadNorm(nn.Module):
    """RMS norm over the channels of a head, with a weight that all heads share."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)
