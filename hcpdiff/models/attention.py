"""The parts that transformers of every family share: attention, modulation, and where and when a token is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 256  # keys; up to here the CPU's bf16 kernel takes three times as long as its fp32 kernel


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, L, H, d) queries over (B, S, H, d) keys and values; (B, L, H * d).

    Args:
        bias: added to the logits, broadcastable to (B, H, L, S). None is the fastest.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    dtype = query.dtype
    if dtype == torch.bfloat16 and query.device.type == "cpu" and key.shape[2] <= SHORT:
        query, key, value = query.float(), key.float(), value.float()
        bias = None if bias is None else bias.float()
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return out.to(dtype).transpose(1, 2).flatten(2)


def key_bias(mask: Tensor, leading: int, dtype: torch.dtype) -> Tensor:
    """log(mask) of (B, L) token weights as a bias on the logits, behind `leading` keys of weight 1; (B, 1, 1, S).

    A key of weight n then takes part like n equal keys, one of weight 0 not at all.
    """
    return F.pad(mask.float().log(), (leading, 0))[:, None, None].to(dtype)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """(B,) timesteps in [0, 1000] to (B, dim) cosines, then sines, of geometric frequencies, in float32."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_embedding(dim: int, grid: int, base: int) -> Tensor:
    """(grid * grid, dim) sines and cosines of the column, then of the row; a grid of any size spans [0, base)."""
    if torch.get_default_device().type == "meta":  # a skeleton has shapes alone
        return torch.empty(grid * grid, dim)
    position = torch.arange(grid, dtype=torch.float32) / (grid / base)
    frequency = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.outer(position.double(), frequency)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, dim / 2)
    columns = line.expand(grid, grid, -1)
    rows = line[:, None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()
