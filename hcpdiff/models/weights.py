"""Folders of config.json and safetensors, as diffusers and transformers lay them out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DIFFUSERS = "diffusion_pytorch_model"  # how diffusers calls weights; transformers: "model"


def load(module: nn.Module, folder: Path, *, name: str = DIFFUSERS, dtype: torch.dtype | None = None) -> None:
    """Give `module`, usually on the meta device, the weights of `folder`; every one must be there and fit.

    They are copied out of the file: mapped ones lie unaligned, which changes the last bits of what is computed.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: names or shapes differ.
    """
    state = read(folder, name=name)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{folder}: the weights do not fit {type(module).__name__}: "
            f"{_some('missing', missing)}{_some('unknown', unexpected)}is config.json of the same model?"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{folder}: {key} has shape {tuple(value.shape)}; by config.json it is {tuple(own[key].shape)}"
            )
    module.load_state_dict({k: v.to(dtype or v.dtype, copy=True) for k, v in state.items()}, assign=True)


def present(folder: Path, *, name: str = DIFFUSERS) -> bool:
    """Whether `folder` holds weights, in one file or in shards."""
    return (folder / f"{name}.safetensors").exists() or (folder / f"{name}.safetensors.index.json").exists()


@contextmanager
def on_meta() -> Iterator[None]:
    """Tensors made inside are on the meta device: shapes without memory."""
    with torch.device("meta"), _LightArange():
        yield


class _LightArange(TorchFunctionMode):
    """torch.arange on the meta device loads torch's compiler, which takes a second; an empty tensor does as well."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.arange and kwargs.get("device") is None and all(isinstance(a, int) for a in args):
            return torch.empty(len(range(*args)), dtype=kwargs.get("dtype") or torch.int64, device="meta")
        return func(*args, **kwargs)


def read(folder: Path, *, name: str = DIFFUSERS) -> dict[str, Tensor]:
    """All tensors of `folder`, from one file or from the shards that an index lists."""
    index = folder / f"{name}.safetensors.index.json"
    if index.exists():
        files = sorted(set(read_json(index)["weight_map"].values()))
    else:
        files = [f"{name}.safetensors"]
    state: dict[str, Tensor] = {}
    for file in files:
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder}: no {file} here; is the model downloaded completely?")
        state.update(load_file(folder / file))
    return state


def save(state: Mapping[str, Tensor], folder: Path, *, name: str = DIFFUSERS) -> None:
    """Write one safetensors file; it appears complete or not at all, so a model may be saved to where it came from."""
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / f"{name}.safetensors", folder / f".{name}.safetensors.part"
    save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, temporary, metadata={"format": "pt"})
    os.replace(temporary, target)
    (folder / f"{name}.safetensors.index.json").unlink(missing_ok=True)


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


def _some(what: str, names: list[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}); " if names else ""
