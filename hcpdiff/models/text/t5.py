"""T5's encoder, of transformers; and the silent one that stands in where a model is used without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hcpdiff.models.text import loading
from hcpdiff.models.weights import on_meta

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5EncoderModel


def encode(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Token features, (B, L, D). Padding is attended to, as SD3 was trained."""
    return encoder(ids).last_hidden_state


def read(folder: Path, dtype: torch.dtype, *, weights: bool = True) -> nn.Module:
    """T5's encoder of a folder; see `loading.read`."""
    from transformers import T5EncoderModel

    return loading.read(T5EncoderModel, folder, dtype, weights=weights)


def skeleton(folder: Path) -> nn.Module:
    """Its layers on the meta device."""
    with on_meta():
        return read(folder, torch.float32, weights=False)


def is_silent(folder: Path) -> bool:
    """Whether the T5 of this folder returns zeros whatever it reads, because its last norm has no weight."""
    name, index = "encoder.final_layer_norm.weight", folder / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"].get(name) if index.exists() else "model.safetensors"
    if file is None or not (folder / file).exists():
        return False
    with safe_open(folder / file, "pt") as tensors:
        return name in tensors.keys() and not tensors.get_tensor(name).any()  # noqa: SIM118


def silent(width: int) -> tuple[T5EncoderModel, CLIPTokenizer]:
    """A T5 of almost no size that returns zeros, and a tokenizer for it.

    StableDiffusion3Pipeline.from_pretrained insists on a T5, and without one appends zeros: the same picture.
    """
    from transformers import CLIPTokenizer, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        encoder = T5EncoderModel(T5Config(vocab_size=2, d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1))
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder, CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
