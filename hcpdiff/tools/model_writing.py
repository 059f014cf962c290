"""Writing a model with other weights in the layout of the one that it was made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hcpdiff.formats.tensor_files.dtypes import dtype_name
from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.formats.tensor_files.opening import read_json, write_json
from hcpdiff.formats.tensor_files.replacing import replacing_folder
from hcpdiff.formats.tensor_files.writing import write, write_folder
from hcpdiff.tools.model_files import ModelFiles

OTHER_WEIGHTS = ("*.safetensors*", "*.bin*", "*.ckpt", "*.msgpack", "*.onnx*", "*.h5")


def write_like(
    base: ModelFiles,
    out: Path,
    given: Callable[[str, str], Given],
    header: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    shard_size: str | int,
) -> None:
    """Write a file for a file, or a folder for a folder; it appears when it is complete, and else not at all.

    Args:
        given: the new tensor, by one of the `files` of `base` and the key there; they are made one after the other.
        header: for each file; the base's own stays beside it in a single file.
        dtype: noted in the configs of parts; None leaves them as they are.
        shard_size: the most bytes of a file, in a folder.
    """
    tensors = {part: {key: given(part, key) for key in stored.tensors} for part, stored in base.files.items()}
    if base.layout is not None:
        ((part, stored),) = base.files.items()
        kept = {key: value for key, value in stored.metadata.items() if "hash" not in key}  # those of the base's bytes
        write(out, tensors[part], {**kept, **header})
        return
    with replacing_folder(out) as new:
        _copy_rest(base, new)
        for part, stored in base.files.items():
            name = stored.files[0].name.partition(".")[0].partition("-0")[0]
            write_folder(new / part, name, tensors[part], header, shard_size=shard_size)
            if dtype is not None:
                _note_dtype(new / part / "config.json", dtype)


def _copy_rest(base: ModelFiles, new: Path) -> None:
    """Configs, tokenizers and whatever else belongs to the pipeline, but for the weights of its parts."""
    listed = {name for name, value in base.index.items() if isinstance(value, list) and value[0]}
    for item in base.path.iterdir():
        if item.is_file() and item.suffix in (".json", ".md", ".txt"):
            shutil.copyfile(item, new / item.name)
        elif item.is_dir() and item.name in listed | base.files.keys():
            ignored = shutil.ignore_patterns(*OTHER_WEIGHTS) if item.name in base.files else None
            shutil.copytree(item, new / item.name, ignore=ignored)


def _note_dtype(config: Path, dtype: torch.dtype) -> None:
    """transformers loads weights in the dtype that its config says."""
    values = read_json(config)
    noted = {key: dtype_name(dtype) for key in ("dtype", "torch_dtype") if key in values}
    if noted:
        write_json(config, values | noted)
