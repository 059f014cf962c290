"""Everything that a run needs to go on exactly where it was, in folders that are whole or not there at all.

A checkpoint is written under a temporary name, its files are flushed to the disk and hashed into manifest.json, and
then it is renamed. Tensors are safetensors, the rest is JSON: nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d+)")

State = Mapping[str, Any]  # nested dicts and lists of tensors, numbers, texts, None


def save(folder: Path, step: int, state: State, *, keep_last: int) -> Path:
    """Write `folder`/step-000123 and remove all but the `keep_last` newest checkpoints.

    Args:
        state: by part, e.g. {"weights": ..., "optimizer": ...}; tensors anywhere inside.
    """
    path = folder / f"step-{step:06d}"
    temporary = folder / f".{path.name}.tmp"
    for unfinished in folder.glob(".step-*.tmp"):
        shutil.rmtree(unfinished)
    temporary.mkdir(parents=True)
    for part, content in state.items():
        tensors: dict[str, Tensor] = {}
        skeleton = _take_tensors(content, part, tensors)
        (temporary / f"{part}.json").write_text(json.dumps(skeleton), encoding="utf-8")
        if tensors:
            save_file(tensors, temporary / f"{part}.safetensors")
    hashes = {file.name: _hash(file) for file in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "sha256": hashes}, indent=1), encoding="utf-8")
    for file in temporary.iterdir():
        _flush(file)
    _flush(temporary)
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)
    _flush(folder)
    for old in checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return path


def load(path: Path) -> dict[str, Any]:
    """The state that `save` was given.

    Raises:
        ValueError: a file is missing or is not as it was written.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{path}: no checkpoint: it has no {MANIFEST}")
    try:
        hashes: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged: {MANIFEST} is broken; resume from an earlier checkpoint") from error
    broken = [n for n, wanted in hashes.items() if not (path / n).is_file() or _hash(path / n) != wanted]
    if broken:
        raise ValueError(
            f"{path}: damaged: {', '.join(broken)}: not as in {MANIFEST}; resume from an earlier checkpoint"
        )
    state = {}
    for file in (path / name for name in hashes if name.endswith(".json")):
        weights = file.with_suffix(".safetensors")
        tensors = load_file(weights) if weights.name in hashes else {}
        state[file.stem] = _put_tensors(json.loads(file.read_text(encoding="utf-8")), tensors)
    return state


def set_aside(folder: Path, *, after: int) -> list[Path]:
    """Rename checkpoints after step `after` to step-000123.old: a run that goes on from there makes them anew."""
    renamed = []
    for path in checkpoints(folder):
        if step_of(path) > after:
            old = path.with_name(f"{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            renamed.append(path.rename(old))
    return renamed


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [p for p in folder.glob("step-*") if NAME.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The optimizer step that a checkpoint was written after."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: no checkpoint; they are called step-000123")
    return int(match[1])


def _take_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with {"tensor": key} where a tensor was."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"dict": [[k, _take_tensors(v, f"{key}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_take_tensors(v, f"{key}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"checkpoint: {key} is a {type(value).__name__}, which cannot be saved without running code")


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].clone()
    if "list" in value:
        return [_put_tensors(v, tensors) for v in value["list"]]
    return {k: _put_tensors(v, tensors) for k, v in value["dict"]}


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Have the operating system write a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
