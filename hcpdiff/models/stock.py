"""Models of diffusers and transformers, used as they are: how one is read, and how its blocks are checkpointed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.models.text import loading
from hcpdiff.models.weights import on_meta, present, read_json


@dataclass(frozen=True)
class Stock:
    """A model class of diffusers as the `kind` of a `Part`; it is imported when it is needed.

    Args:
        name: of the class.
        module: where it is, below `diffusers.models`.
    """

    name: str
    module: str

    def read(self, folder: Path, dtype: torch.dtype, *, weights: bool = True) -> Any:
        """The model of a folder; without `weights`, as the current default device and random state make it."""
        try:
            kind = getattr(import_module(f"diffusers.models.{self.module}"), self.name)
        except (ModuleNotFoundError, AttributeError) as error:
            raise ValueError(f"{folder}: this diffusers has no {self.name}; use a newer one") from error
        if not weights:
            return kind.from_config(read_json(folder / "config.json"))
        if not present(folder):
            raise FileNotFoundError(f"{folder}: no safetensors here; is the model downloaded completely?")
        return kind.from_pretrained(folder, torch_dtype=dtype)

    def skeleton(self, folder: Path) -> Any:
        """Its layers on the meta device."""
        with on_meta():
            return self.read(folder, torch.float32, weights=False)


@dataclass(frozen=True)
class StockText:
    """A text encoder of transformers as the `kind` of a `Part`, by the name of its class."""

    name: str

    def read(self, folder: Path, dtype: torch.dtype, *, weights: bool = True) -> nn.Module:
        """The encoder of a folder; see `loading.read`."""
        return loading.read(getattr(import_module("transformers"), self.name), folder, dtype, weights=weights)

    def skeleton(self, folder: Path) -> nn.Module:
        """Its layers on the meta device."""
        with on_meta():
            return self.read(folder, torch.float32, weights=False)


def checkpoint_blocks(model: Any, blocks: Sequence[nn.Module], mode: Literal["none", "all", "mlp"] | int) -> None:
    """Compute the activations of all of its blocks, or of every n-th, again in backward.

    Raises:
        ValueError: "mlp", which diffusers' blocks cannot do alone, or no mode.
    """
    whole = isinstance(mode, int) and not isinstance(mode, bool) and mode > 0
    if mode == "mlp":
        raise ValueError("gradient_checkpointing: this model cannot compute its MLPs alone again; use 'all' or 2")
    if not whole and mode not in ("none", "all"):
        raise ValueError(f"gradient_checkpointing: {mode!r} is no mode; use none, all, or n for every n-th block")
    model.disable_gradient_checkpointing()
    if mode == "none":
        return
    every = 1 if mode == "all" else int(mode)
    chosen = {id(block) for block in blocks[::every]}

    def run(block: nn.Module, *args: Any) -> Any:
        return checkpoint(block, *args, use_reentrant=False) if id(block) in chosen else block(*args)

    model.enable_gradient_checkpointing(run)
