"""Text encoders of transformers, read without its progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


def read(kind: Any, folder: Path, dtype: torch.dtype, *, weights: bool = True) -> nn.Module:
    """The encoder of a folder, by its class `kind`; without `weights`, as default device and random state make it.

    Raises:
        FileNotFoundError: the folder, its config or its weights are missing.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: no config.json here; is the model downloaded completely?")
    if not weights:
        return kind(kind.config_class.from_pretrained(folder))
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
