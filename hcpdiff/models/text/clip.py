"""CLIP's text encoder, of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hcpdiff.models import weights
from hcpdiff.models.text import loading

DEFAULTS = {  # of transformers' CLIPTextConfig, whose config.json may leave them out
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
ACTIVATIONS = {"quick_gelu": "QuickGELUActivation", "gelu": "GELUActivation"}


def encode(encoder: nn.Module, ids: Tensor, *, skip: int = 1) -> tuple[Tensor, Tensor]:
    """Token features (B, L, D) `skip` layers before the last, and the projected, pooled feature (B, P)."""
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-1 - skip], output.text_embeds


def read(folder: Path, dtype: torch.dtype, *, weights: bool = True) -> nn.Module:
    """CLIP's text encoder of a folder; see `loading.read`."""
    from transformers import CLIPTextModelWithProjection

    return loading.read(CLIPTextModelWithProjection, folder, dtype, weights=weights)


def skeleton(folder: Path) -> nn.Module:
    """The layers of `read`'s encoder by name, class name and shape, on the meta device, unable to run.

    To look at names needs no transformers, whose import takes two seconds.
    """
    config = DEFAULTS | weights.read_json(folder / "config.json")
    width, inner, positions = (config[k] for k in ("hidden_size", "intermediate_size", "max_position_embeddings"))

    def mlp() -> nn.Module:
        name = str(config["hidden_act"])
        activation = _container(ACTIVATIONS.get(name, name), {})
        layers = {"activation_fn": activation, "fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)}
        return _container("CLIPMLP", layers)

    def block() -> nn.Module:
        projections = {f"{name}_proj": nn.Linear(width, width) for name in ("k", "v", "q", "out")}
        return _container(
            "CLIPEncoderLayer",
            {
                "self_attn": _container("CLIPAttention", projections),
                "layer_norm1": nn.LayerNorm(width),
                "mlp": mlp(),
                "layer_norm2": nn.LayerNorm(width),
            },
        )

    with weights.on_meta():
        tokens, places = nn.Embedding(config["vocab_size"], width), nn.Embedding(positions, width)
        embeddings = {"token_embedding": tokens, "position_embedding": places}
        blocks = nn.ModuleList(block() for _ in range(config["num_hidden_layers"]))
        model = {
            "embeddings": _container("CLIPTextEmbeddings", embeddings),
            "encoder": _container("CLIPEncoder", {"layers": blocks}),
            "final_layer_norm": nn.LayerNorm(width),
        }
        projection = nn.Linear(width, config["projection_dim"], bias=False)
        parts = {"text_model": _container("CLIPTextModel", model), "text_projection": projection}
        return _container("CLIPTextModelWithProjection", parts)


def _container(name: str, children: Mapping[str, nn.Module]) -> nn.Module:
    """A module of class name `name` that holds `children`."""
    module = type(name, (nn.Module,), {})()
    for child, layer in children.items():
        module.add_module(child, layer)
    return module
