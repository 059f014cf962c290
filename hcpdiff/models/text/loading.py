"""Text encoders of transformers, read without its progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


def read(kind: Any, folder: Path, dtype: torch.dtype, *, weights: bool = True) -> nn.Module:
    """The encoder of a folder, by its class `kind`; without `weights`, by `_spread` and torch's random state.

    Raises:
        FileNotFoundError: the folder, its config or its weights are missing.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: no config.json here; is the model downloaded completely?")
    if not weights:
        return _spread(kind(kind.config_class.from_pretrained(folder)))
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder}: no safetensors here; is the model downloaded completely?")
    with quiet():
        return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers in here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _spread(encoder: Any) -> nn.Module:
    """First weights at which a small text encoder learns fast: xavier, and tokens as far apart as their width allows.

    transformers' own are for large models: with them a small one starts nearly blind to its prompt.
    """
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    embeddings = encoder.get_input_embeddings().weight
    nn.init.normal_(embeddings, std=embeddings.shape[1] ** -0.5)
    return encoder
