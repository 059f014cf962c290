"""Text encoders of transformers: how one is read, and that without progress bars."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hcpdiff.formats.tensor_files.opening import TRANSFORMERS, open_folder
from hcpdiff.models import weights
from hcpdiff.models.blank import on_meta, weights_on_meta

PREFIXES = ("text_model.", "model.", "transformer.")  # that some versions of transformers write, and others do not
# Beside the encoder in files of a whole model.
UNUSED = r"(.+\.)?position_ids|logit_scale|(lm_head|decoder|vision_model|visual_projection|text_projection)\..+"


@dataclass(frozen=True)
class StockText:
    """A class of transformers as the `kind` of a `Part`, by its name."""

    name: str

    def read(self, folder: Path, dtype: torch.dtype | None) -> nn.Module:
        """The encoder of a folder; with `dtype` None, every weight is as it is there.

        Raises:
            FileNotFoundError: the folder, its config or its weights are missing.
            ValueError: the weights do not fit the config.
        """
        encoder = self.blank(folder)
        files = open_folder(folder, TRANSFORMERS).tensors
        names = _names(encoder.state_dict(), files)
        return weights.load(encoder, folder, name=TRANSFORMERS, dtype=dtype, names=names)

    def random(self, folder: Path) -> nn.Module:
        """The encoder of a folder by `_spread` and torch's random state."""
        return _spread(self._made(folder))

    def blank(self, folder: Path) -> nn.Module:
        """The encoder of a folder, its weights on the meta device."""
        with weights_on_meta():
            return self._made(folder)

    def skeleton(self, folder: Path) -> nn.Module:
        """Its layers on the meta device."""
        with on_meta():
            return self._made(folder)

    def _made(self, folder: Path) -> Any:
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"{folder}: no config.json here; is the model downloaded completely?")
        kind: Any = getattr(import_module("transformers"), self._class(folder))
        return kind(kind.config_class.from_pretrained(folder))

    def _class(self, folder: Path) -> str:
        return self.name


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


def _names(own: Collection[str], files: Iterable[str]) -> dict[str, str]:
    """{name in the encoder: in its files}, with or without a prefix; what belongs to other parts is left out."""
    names = {}
    for file in files:
        others = [*(f"{prefix}{file}" for prefix in PREFIXES), *(file.removeprefix(prefix) for prefix in PREFIXES)]
        others.append(f"model.language_model.{file.removeprefix('model.')}")  # of a model that sees, too
        name = next((name for name in (file, *others) if name in own), file)
        if name in own or not re.fullmatch(UNUSED, file):
            names[name] = file
    return names


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
