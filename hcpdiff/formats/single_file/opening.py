"""Opening one file of weights without reading it: names and shapes at once, tensors one by one, mapped."""

from __future__ import annotations

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt")
# What torch.load raises of files that are cut off or no checkpoints.
_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, struct.error)


def is_file(path: str | Path) -> bool:
    """Whether `path` names one file of weights, be it there or not."""
    path = Path(path).expanduser()
    return path.suffix in SUFFIXES and not path.is_dir()


class Weights(ABC):
    """The tensors of one file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def get(self, key: str) -> Tensor:
        """Mapped from the file: copy it before it is computed with."""


def open_weights(path: str | Path) -> Weights:
    """Open a safetensors or ckpt file. Of a ckpt only tensors and plain values are read, no code in it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, or no file of weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give a model's single file, its folder, or owner/name on the hub")
    return _Safetensors(path) if path.suffix == ".safetensors" else _Checkpoint(path)


class _Safetensors(Weights):
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(
                f"{path}: no whole safetensors file ({path.stat().st_size} bytes; {error}); download it again"
            ) from error
        self.shapes = {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118

    def get(self, key: str) -> Tensor:
        return self._file.get_tensor(key)


class _Checkpoint(Weights):
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        except _BROKEN as error:
            raise ValueError(
                f"{path}: no plain tensors ({path.stat().st_size} bytes; {type(error).__name__}); it is truncated or "
                "holds other objects, which are never unpickled here: use the model's safetensors file"
            ) from error
        state = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(state, dict):
            raise ValueError(f"{path}: no tensors by name here, but a {type(content).__name__}")
        self._tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        self.shapes = {key: tuple(value.shape) for key, value in self._tensors.items()}

    def get(self, key: str) -> Tensor:
        return self._tensors[key]
