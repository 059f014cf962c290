"""Models of diffusers, used as they are: how one is read, and how its blocks are checkpointed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.formats.tensor_files.opening import DIFFUSERS, open_folder, read_json
from hcpdiff.models import weights
from hcpdiff.models.blank import on_meta, weights_on_meta


@dataclass(frozen=True)
class Stock:
    """A model class of diffusers as the `kind` of a `Part`; it is imported when it is needed.

    Args:
        name: of the class.
        module: where it is, below `diffusers.models`.
    """

    name: str
    module: str

    def read(self, folder: Path, dtype: torch.dtype | None) -> Any:
        """The model of a folder; with `dtype` None, every weight is as it is there."""
        model = self.blank(folder)
        names = {key: key for key in open_folder(folder, DIFFUSERS).tensors}
        model._fix_state_dict_keys_on_load(names)  # of old attention layers
        return weights.load(model, folder, dtype=dtype, names=names)

    def random(self, folder: Path) -> Any:
        """The model of a folder as torch's random state makes it."""
        return self._class(folder).from_config(read_json(folder / "config.json"))

    def blank(self, folder: Path) -> Any:
        """The model of a folder, its weights on the meta device."""
        with weights_on_meta():
            return self.random(folder)

    def skeleton(self, folder: Path) -> Any:
        """Its layers on the meta device."""
        with on_meta():
            return self.random(folder)

    def _class(self, folder: Path) -> Any:
        try:
            return getattr(import_module(f"diffusers.models.{self.module}"), self.name)
        except (ModuleNotFoundError, AttributeError) as error:
            raise ValueError(f"{folder}: this diffusers has no {self.name}; use a newer one") from error


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
