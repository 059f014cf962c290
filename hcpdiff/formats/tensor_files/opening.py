"""Opening weights: one file, or the folder of one model as diffusers and transformers lay it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hcpdiff.formats.tensor_files.pickled import checkpoint
from hcpdiff.formats.tensor_files.reading import Weights, safetensors

SUFFIXES = (".safetensors", ".ckpt")
DIFFUSERS = "diffusion_pytorch_model"  # how diffusers calls weights
TRANSFORMERS = "model"  # and transformers
INDEX = "model_index.json"  # of the folder of a pipeline, which says what the folders in it are


def is_file(path: str | Path) -> bool:
    """Whether `path` names one file of weights, be it there or not."""
    path = Path(path).expanduser()
    return path.suffix in SUFFIXES and not path.is_dir()


def open_weights(path: str | Path) -> Weights:
    """Open a safetensors file, or one of torch.save.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, or no file of weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; give a model's single file, its folder, or owner/name on the hub")
    return safetensors([path]) if path.suffix == ".safetensors" else checkpoint(path)


def present(folder: Path, *names: str) -> bool:
    """Whether `folder` holds weights of one of these names, by default any, in one file or in shards."""
    return any(_index(folder, n).is_file() or _file(folder, n).is_file() for n in names or (DIFFUSERS, TRANSFORMERS))


def open_folder(folder: Path, *names: str) -> Weights:
    """Open the weights of one model, in one file or in the shards that an index lists.

    Args:
        names: the first of these that is there; by default that of diffusers, or of transformers.

    Raises:
        FileNotFoundError: there are no weights, or one of the shards is missing.
        ValueError: a file is truncated.
    """
    names = names or (DIFFUSERS, TRANSFORMERS)
    name = next((name for name in names if present(folder, name)), None)
    if name is None:
        wanted = " or ".join(_file(folder, name).name for name in names)
        others = sorted(file.name for file in folder.glob("*") if file.suffix in (".safetensors", ".bin", ".ckpt"))
        found = f", but {', '.join(others[:3])}, which is not read" if others else ""
        raise FileNotFoundError(f"{folder}: no {wanted} here{found}; is the model downloaded completely?")
    index = _index(folder, name)
    listed = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [_file(folder, name).name]
    if missing := [file for file in listed if not (folder / file).is_file()]:
        of = f", of {len(listed)} that {index.name} names"
        raise FileNotFoundError(f"{folder}: no {', '.join(missing)} here{of}; is the model downloaded completely?")
    return safetensors(folder / file for file in listed)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content; a missing file is named with its folder."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: no {path.name} here; is this the folder of a model in diffusers' layout?"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read and compare; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _index(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors.index.json"
