"""Folders of config.json and safetensors, as diffusers and transformers lay them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.formats.tensor_files import reading
from hcpdiff.formats.tensor_files.fitting import check

DIFFUSERS = "diffusion_pytorch_model"  # how diffusers calls weights
TRANSFORMERS = "model"  # and transformers

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


def present(folder: Path, *, name: str = DIFFUSERS) -> bool:
    """Whether `folder` holds weights, in one file or in shards."""
    return (folder / f"{name}.safetensors").exists() or (folder / f"{name}.safetensors.index.json").exists()


def opened(folder: Path, *, name: str = DIFFUSERS) -> reading.Weights:
    """The tensors of `folder`, in one file or in the shards that an index lists, none of them read yet.

    Raises:
        FileNotFoundError: there are no weights, or one of the shards is missing.
        ValueError: a file is truncated.
    """
    index = folder / f"{name}.safetensors.index.json"
    if index.exists():
        files = sorted(set(read_json(index)["weight_map"].values()))
    else:
        files = [f"{name}.safetensors"]
    if missing := [file for file in files if not (folder / file).exists()]:
        of = f", of {len(files)} that {index.name} names" if index.exists() else ""
        raise FileNotFoundError(f"{folder}: no {', '.join(missing)} here{of}; is the model downloaded completely?")
    return reading.safetensors(folder / file for file in files)


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
    weights, own = opened(folder, name=name), module.state_dict(keep_vars=True)
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
        return weights.read(file, torch.float32 if kept & set(key.split(".")) else dtype).to(device)

    state = reading.read_all({key: partial(read, key, file) for key, file in names.items()})
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content; a missing file is named with its folder."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent}: no {path.name} here; is this the folder of a model in diffusers' layout?"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read and compare; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """A floating dtype by its torch name or the usual short one: float32/fp32, bfloat16/bf16, float16/fp16."""
    short = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = short.get(name) or getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{name!r} is no floating dtype; use float32, bfloat16 or float16")
    return dtype
