"""Models before they have weights: on the meta device, with shapes and without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions of torch.nn.init, or what transformers puts in their place, and methods that these call.
_INITIALISERS = {"uniform_", "normal_", "constant_", "kaiming_uniform_", "fill_", "zero_"}


@contextmanager
def on_meta() -> Iterator[None]:
    """Tensors made inside are on the meta device."""
    with torch.device("meta"), _LightArange():
        yield


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """Weights made inside are on the meta device; what is computed, such as tables of positions, has its values.

    Weights begin as `torch.empty`, and what no file holds never does.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _EmptyOnMeta():
        yield


class _LightArange(TorchFunctionMode):
    """torch.arange on the meta device loads torch's compiler, which takes a second; an empty tensor does as well."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.arange and kwargs.get("device") is None and all(isinstance(a, int) for a in args):
            return torch.empty(len(range(*args)), dtype=kwargs.get("dtype") or torch.int64, device="meta")
        return func(*args, **kwargs)


class _EmptyOnMeta(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        if getattr(func, "__name__", None) in _INITIALISERS:
            tensor = kwargs.get("tensor", args[0] if args else None)
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor  # they would compute much for nothing
        return func(*args, **kwargs)
