"""Writing a model with other weights in the layout of the one that it was made from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hcpdiff.formats.tensor_files import Entry, write, write_folder
from hcpdiff.tools.model_files import ModelFiles

OTHER_WEIGHTS = ("*.safetensors*", "*.bin*", "*.ckpt", "*.msgpack", "*.onnx*", "*.h5")


def write_like(
    base: ModelFiles,
    out: Path,
    entry: Callable[[str, str], Entry],
    tensor: Callable[[str, str], Tensor],
    header: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    shard: int,
) -> None:
    """Write a file for a file, or a folder for a folder; it appears when it is complete, and else not at all.

    Args:
        entry: of what dtype and shape `tensor` will be, by the file in `base` and the key there.
        tensor: asked for one after the other.
        header: for each file; the base's own stays beside it in a single file.
        dtype: noted in the configs of parts; None leaves them as they are.
        shard: bytes after which another file begins, in a folder.
    """
    if base.layout is None:
        with _new_folder(out) as new:
            _copy_rest(base, new)
            for folder in base.parts:
                _write_part(base, folder, new / folder, entry, tensor, header, shard)
                if dtype is not None:
                    _note_dtype(new / folder / "config.json", dtype)
        return
    ((name, stored),) = base.files.items()
    kept = {key: value for key, value in stored.metadata.items() if "hash" not in key}  # those of the base's bytes
    entries = {key: entry(name, key) for key in stored.entries}
    write(out, entries, lambda key: tensor(name, key), {**kept, **header})


def _write_part(
    base: ModelFiles,
    folder: str,
    new: Path,
    entry: Callable[[str, str], Entry],
    tensor: Callable[[str, str], Tensor],
    header: Mapping[str, str],
    shard: int,
) -> None:
    files = {file: stored for file, stored in base.files.items() if file.startswith(f"{folder}/")}
    of = {key: file for file, stored in files.items() for key in stored.entries}
    name = next(iter(files)).removeprefix(f"{folder}/").partition(".")[0].partition("-0")[0]
    entries = {key: entry(file, key) for key, file in of.items()}
    write_folder(new, name, entries, lambda key: tensor(of[key], key), header, shard=shard)


def _copy_rest(base: ModelFiles, new: Path) -> None:
    """Configs, tokenizers and whatever else belongs to the pipeline, but for the weights of its parts."""
    listed = {name for name, value in base.index.items() if isinstance(value, list) and value[0]}
    for item in base.path.iterdir():
        if item.is_file() and item.suffix in (".json", ".md", ".txt"):
            shutil.copyfile(item, new / item.name)
        elif item.is_dir() and item.name in listed | base.parts.keys():
            ignored = shutil.ignore_patterns(*OTHER_WEIGHTS) if item.name in base.parts else None
            shutil.copytree(item, new / item.name, ignore=ignored)


def _note_dtype(config: Path, dtype: torch.dtype) -> None:
    """transformers loads weights in the dtype that its config says."""
    values = json.loads(config.read_text(encoding="utf-8"))
    noted = {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in values}
    if noted:
        config.write_text(json.dumps(values | noted, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when all went well, and is removed otherwise."""
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        new.mkdir(parents=True)
        yield new
        new.replace(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
