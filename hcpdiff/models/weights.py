"""Giving a module its weights from a folder of config.json and safetensors, as diffusers and transformers have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.formats.tensor_files.fitting import check
from hcpdiff.formats.tensor_files.opening import DIFFUSERS, open_folder
from hcpdiff.formats.tensor_files.reading import read_all

CPU = torch.device("cpu")

_device: ContextVar[torch.device] = ContextVar("device", default=CPU)


@contextmanager
def onto(device: str | torch.device) -> Iterator[None]:
    """Inside, weights are read straight to `device`; elsewhere to the CPU."""
    token = _device.set(torch.device(device))
    try:
        yield
    finally:
        _device.reset(token)


def device() -> torch.device:
    """Where weights are read to."""
    return _device.get()


def load(
    module: nn.Module,
    folder: Path,
    *,
    name: str = DIFFUSERS,
    dtype: torch.dtype | None = None,
    names: Mapping[str, str] | None = None,
) -> Any:
    """Give `module`, whose weights are on the meta device, those of `folder`; every one must be there and fit.

    Args:
        dtype: None leaves each as it is.
        names: {in the module: in the files}, where they differ.

    Returns:
        The module, in eval mode.

    Raises:
        FileNotFoundError: there are no weights, or not all of them.
        ValueError: names, shapes or dtypes do not fit, or a file is truncated.
    """
    weights, own = open_folder(folder, name), module.state_dict(keep_vars=True)
    names = names if names is not None else {key: key for key in weights.tensors}
    tied = _tied(own, names)
    names = {key: file for key, file in names.items() if tied.get(key, key) == key}
    check(
        {key: tuple(own[key].shape) for key in tied.values()},
        {key: weights.tensors[file] for key, file in names.items()},
        where=f"{folder}: the weights do not fit {type(module).__name__}",
        ask="is config.json of the same model?",
        by="by config.json it is",
    )
    kept, device = in_float32(module, dtype), _device.get()

    def read(key: str, file: str) -> Tensor:
        wanted = torch.float32 if kept & set(key.split(".")) else dtype
        return weights.read(file, wanted if weights.tensors[file].dtype.is_floating_point else None).to(device)

    state = read_all({key: partial(read, key, file) for key, file in names.items()})
    module.load_state_dict({key: state[name] for key, name in tied.items()}, assign=True)
    return finished(module, dtype)


def in_float32(module: Any, dtype: torch.dtype | None) -> set[str]:
    """Names of layers that a model of diffusers or transformers keeps in float32 whatever `dtype` is asked for."""
    kept, strict = (getattr(module, f"_keep_in_fp32_modules{which}", None) for which in ("", "_strict"))
    if dtype is None:
        return set()
    if not hasattr(module, "_keep_in_fp32_modules_strict"):  # diffusers
        return set(kept or ())
    of_half = dtype in (torch.float16, torch.bfloat16)
    return set(kept or () if dtype == torch.float16 else ()) | set(strict or () if of_half else ())


def finished(module: Any, dtype: torch.dtype | None) -> Any:
    """A module that has its weights, in eval mode: layers are tied, and its config says the dtype."""
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    if hasattr(getattr(module, "config", None), "dtype") and not isinstance(module.config, Mapping):
        module.config.dtype = dtype or next(module.parameters()).dtype
    unmade = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    assert not unmade, unmade
    return module.to(_device.get()).eval()


def _tied(own: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    """{name in the module: the one under which this tensor is read}; of tied ones a file may have any name, or all."""
    chosen: dict[int, str] = {}
    for key in [*names, *own]:
        if key in own:
            chosen.setdefault(id(own[key]), key)
    return {key: chosen[id(tensor)] for key, tensor in own.items()}
