"""Rotary positions: queries and keys are turned by where their tokens are (arXiv:2104.09864, in two dimensions)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

THETA = 10000.0


def rotation(
    rows: int, columns: int, axes: Sequence[int], *, text: int = 0, device: torch.device | None = None
) -> Tensor:
    """The cosine and sine of every pair of channels, (rows * columns + text, sum(axes) / 2, 2) in float32.

    Args:
        rows, columns: of the grid of image tokens; they come first, row by row.
        axes: how many channels of a head turn by which picture this is (the first one, always), by row, by column.
        text: tokens behind them that have no place and do not turn.
    """
    row, column = torch.meshgrid(
        *(torch.arange(count, dtype=torch.float64, device=device) for count in (rows, columns)), indexing="ij"
    )
    places = (torch.zeros_like(row), row, column)
    angles = [place[..., None] * _frequencies(size, device) for place, size in zip(places, axes, strict=True)]
    angle = F.pad(torch.cat(angles, dim=-1).flatten(0, 1), (0, 0, 0, text))
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Each pair of neighbouring channels of (B, L, H, d) turned by (L, d / 2, 2); in float32, as positions need it."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler does not know complex numbers
        (first, second), (cos, sin) = pairs.unbind(-1), rotation[:, None].unbind(-1)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation)[:, None])
    return turned.flatten(-2).to(x.dtype)


def _frequencies(channels: int, device: torch.device | None) -> Tensor:
    return THETA ** -(torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels)
