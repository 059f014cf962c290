"""T5's encoder, of transformers; and the silent one that stands in where a model is used without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hcpdiff.formats.tensor_files.opening import TRANSFORMERS, open_folder, present
from hcpdiff.models.text.loading import StockText

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


KIND = StockText("T5EncoderModel")


def encode(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Token features, (B, L, D). Padding is attended to, as SD3 was trained."""
    return encoder(ids).last_hidden_state


def is_silent(folder: Path) -> bool:
    """Whether the T5 of this folder returns zeros whatever it reads, because its last norm has no weight."""
    if not present(folder, TRANSFORMERS):
        return False
    name, stored = "encoder.final_layer_norm.weight", open_folder(folder, TRANSFORMERS)
    return name in stored.tensors and not stored.read(name).any()


def silent(width: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, CLIPTokenizer]:
    """A T5 of almost no size that returns zeros, and a tokenizer for it.

    StableDiffusion3Pipeline.from_pretrained insists on a T5, and without one appends zeros: the same picture.
    """
    from transformers import CLIPTokenizer, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # that one model is written as the same bytes
        encoder = T5EncoderModel(T5Config(vocab_size=2, d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1))
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return nn.Module.to(encoder, dtype), CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
