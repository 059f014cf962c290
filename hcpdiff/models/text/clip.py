"""CLIP's text encoder, of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hcpdiff.formats.tensor_files.opening import read_json
from hcpdiff.models.blank import on_meta
from hcpdiff.models.text.loading import StockText

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


def encode(encoder: Any, ids: Tensor, *, skip: int = 1, normalised: bool = False) -> tuple[Tensor, Tensor]:
    """Token features (B, L, D) `skip` layers before the last, and the pooled feature (B, P).

    Args:
        normalised: whether the features go through the norm that follows the last layer.
    """
    output = encoder(ids, output_hidden_states=True)
    features = output.hidden_states[-1 - skip]
    if normalised:
        features = getattr(encoder, "text_model", encoder).final_layer_norm(features)
    return features, output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output


def check_skip(encoder: Any, skip: int) -> None:
    """Raise unless so many layers can be left out."""
    layers = len(getattr(encoder, "text_model", encoder).encoder.layers)
    if not 0 <= skip < layers:
        raise ValueError(f"clip_skip: {skip} of {layers} layers cannot be left out; use 0 to {layers - 1}")


def _layers(folder: Path) -> nn.Module:
    """The layers of the encoder by name, class name and shape, on the meta device, unable to run.

    To look at names needs no transformers, whose import takes two seconds.
    """
    config = DEFAULTS | read_json(folder / "config.json")
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

    with on_meta():
        tokens, places = nn.Embedding(config["vocab_size"], width), nn.Embedding(positions, width)
        embeddings = {"token_embedding": tokens, "position_embedding": places}
        blocks = nn.ModuleList(block() for _ in range(config["num_hidden_layers"]))
        model = {
            "embeddings": _container("CLIPTextEmbeddings", embeddings),
            "encoder": _container("CLIPEncoder", {"layers": blocks}),
            "final_layer_norm": nn.LayerNorm(width),
        }
        if not _projects(folder):
            return _container("CLIPTextModel", model)
        projection = nn.Linear(width, config["projection_dim"], bias=False)
        parts = {"text_model": _container("CLIPTextModel", model), "text_projection": projection}
        return _container("CLIPTextModelWithProjection", parts)


def _projects(folder: Path) -> bool:
    config = folder / "config.json"
    return not config.exists() or read_json(config).get("architectures") != ["CLIPTextModel"]


def _container(name: str, children: Mapping[str, nn.Module]) -> nn.Module:
    """A module of class name `name` that holds `children`."""
    module = type(name, (nn.Module,), {})()
    for child, layer in children.items():
        module.add_module(child, layer)
    return module


@dataclass(frozen=True)
class _Kind(StockText):
    """With its projection if the folder's config has one."""

    name: str = "CLIPTextModel"

    def skeleton(self, folder: Path) -> nn.Module:
        return _layers(folder)

    def _class(self, folder: Path) -> str:
        return f"{self.name}WithProjection" if _projects(folder) else self.name


KIND = _Kind()
