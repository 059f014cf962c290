"""Writing a model, or one part of it, as the folders that diffusers and transformers read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hcpdiff.formats.tensor_files.opening import DIFFUSERS, TRANSFORMERS
from hcpdiff.formats.tensor_files.writing import cast, given, write_folder


def save_part(
    module: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_size: str | int | None = None,
    weights: bool = True,
) -> None:
    """Write config.json and safetensors of one model: hcpdiff's own, diffusers' or transformers'.

    Args:
        dtype: of all floating weights; None leaves each as it is.
        shard_size: the most bytes of a file, such as "5GB"; None writes one file.
        weights: False writes config.json alone.

    Raises:
        ValueError: `shard_size` is none.
    """
    of_diffusers = hasattr(module, "save_config")
    if of_diffusers:
        module.save_config(folder)
    else:
        _save_config(module, folder, dtype)
    if weights:
        tensors = cast(given(_without_ties(module.state_dict(keep_vars=True))), dtype)
        write_folder(folder, DIFFUSERS if of_diffusers else TRANSFORMERS, tensors, shard_size=shard_size)


def _save_config(encoder: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Of a model of transformers; it says the class, and the dtype of the weights."""
    config = copy.deepcopy(encoder.config)
    config.architectures = [type(encoder).__name__]
    config.dtype = dtype or encoder.dtype
    config.save_pretrained(folder)


def _without_ties(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of tensors with two names the first."""
    first = {id(tensor): key for key, tensor in reversed(list(state.items()))}
    return {key: tensor for key, tensor in state.items() if first[id(tensor)] == key}
