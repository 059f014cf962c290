"""Reading checkpoints that torch.save has written: of them only tensors and plain values, no code in them runs."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from hcpdiff.formats.tensor_files.entries import Stored
from hcpdiff.formats.tensor_files.reading import Loaded, Plain, Weights

# What torch.load raises of files that are cut off or no checkpoints.
_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, struct.error)


def checkpoint(path: Path) -> Weights:
    """The tensors of a file, or of the `state_dict` in it; of an old file, which does not tell where, read at once.

    Raises:
        ValueError: it is truncated, or holds other objects.
    """
    if not is_zipfile(path):
        return Loaded(path, _unpickled(path))
    skeleton = _unpickled(path, map_location="meta")
    starts = {key: _start(x) for key, x in skeleton.items()}
    if None in starts.values():
        return Loaded(path, _unpickled(path, mmap=True))
    return Plain([path], {key: Stored(x.dtype, tuple(x.shape), path, starts[key] or 0) for key, x in skeleton.items()})


def _start(tensor: Tensor) -> int | None:
    """The place in the file of a tensor that torch.load has put on the meta device; older versions do not tell."""
    storage: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if storage is None or not tensor.is_contiguous():
        return None
    return storage + int(tensor.storage_offset()) * tensor.dtype.itemsize


def _unpickled(path: Path, *, map_location: str = "cpu", **options: Any) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, **options)
    except _BROKEN as error:
        raise ValueError(
            f"{path}: no plain tensors ({path.stat().st_size} bytes; {type(error).__name__}); it is truncated or "
            "holds other objects, which are never unpickled here: use the model's safetensors file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: no tensors by name here, but a {type(content).__name__}")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}
