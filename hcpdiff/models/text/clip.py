"""CLIP's text encoder, of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hcpdiff.models.text import loading


def encode(encoder: nn.Module, ids: Tensor, *, skip: int = 1) -> tuple[Tensor, Tensor]:
    """Token features (B, L, D) `skip` layers before the last, and the projected, pooled feature (B, P)."""
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-1 - skip], output.text_embeds


def read(folder: Path, dtype: torch.dtype, *, weights: bool = True) -> nn.Module:
    """CLIP's text encoder of a folder; see `loading.read`."""
    from transformers import CLIPTextModelWithProjection

    return loading.read(CLIPTextModelWithProjection, folder, dtype, weights=weights)
