"""`hcpdiff inspect`: what a file holds, whatever program wrote it. Of models only names and shapes are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hcpdiff.formats import detect, peft, reading
from hcpdiff.formats.changes import Additive, AnyChange, Changes
from hcpdiff.formats.dora import DoRA
from hcpdiff.formats.lora_files import Update, without_mid
from hcpdiff.formats.lycoris import Full
from hcpdiff.formats.modules import taken_apart
from hcpdiff.formats.single_file.layouts import recognise
from hcpdiff.formats.tensor_files.dtypes import dtype_name
from hcpdiff.formats.tensor_files.entries import Entry
from hcpdiff.formats.tensor_files.opening import INDEX, open_folder, open_weights, read_json
from hcpdiff.formats.tensor_files.reading import Loaded, Weights, safetensors
from hcpdiff.tools.model_files import ModelFiles, layer_of, open_model
from hcpdiff.tools.report import LayerReport, Report

HASHED = 1_000_000_000  # bytes: a file up to that size is hashed in a few seconds
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_WORDS = re.compile(r"(?:emb_params|emp_params|clip_[lg]|t5|t5xxl)(?:_out)?|string_to_param\..*|bundle_emb\..+|<.+>")
_CONTROL = re.compile(r"(?:control_model\.|controlnet_|zero_convs\.|input_hint_block\.).*")
_TAGS = 10


def inspect(path: str | Path, *, family: str | None = None) -> Report:
    """Look into a LoRA of any program, a learned word, a ControlNet, a plugin's file, a model or a checkpoint.

    Args:
        path: a file or a folder.
        family: one of `names.ARCHITECTURES`, for a LoRA that does not tell.

    Raises:
        FileNotFoundError: there is nothing of this name.
        ValueError: it cannot be read.
    """
    given, path = str(path), Path(path).expanduser()
    if path.is_file():
        return _file(path, family)
    if path.is_dir() and (path / "manifest.json").is_file():
        return _checkpoint(path)
    if path.is_dir() and peft.weights_in(path):
        return _lora(path, safetensors(peft.weights_in(path)), family)
    if path.is_dir() and (path / "config.json").is_file() and not (path / INDEX).is_file():
        return _part(path)
    return _model(open_model(given))


def _file(path: Path, family: str | None) -> Report:
    if path.suffix not in (".safetensors", *PICKLED):
        raise ValueError(f"{path}: no file of weights; they end in {', '.join(('.safetensors', *PICKLED))}")
    stored = open_weights(path)
    if not stored.tensors and path.suffix in PICKLED:
        stored = _nested(path)
    keys = list(stored.tensors)
    plugin = json.loads(stored.metadata.get("hcpdiff.plugin", "{}"))
    if plugin.get("file", {}).get("form") == "hcpdiff" or (plugin and "file" not in plugin):
        return _plugin(stored, plugin)
    if keys and all(map(_WORDS.fullmatch, keys)):
        return _words(stored)
    if any(map(_CONTROL.fullmatch, keys)):
        return _about(path, "ControlNet", stored)
    if path.suffix == ".safetensors" and _is_lora(keys):
        return _lora(path, stored, family)
    try:
        recognise(stored.shapes, path)
    except ValueError as error:
        report = _about(path, _seems(keys) or "tensors", stored)
        report.notes.append(str(error).removeprefix(f"{path}: "))
        report.layers = _layers(stored.tensors)
        return report
    return _model(open_model(path))


def _nested(path: Path) -> Weights:
    """Of a learned word of AUTOMATIC1111's web UI, whose tensors are one level down."""
    inner = torch.load(path, map_location="cpu", weights_only=True).get("string_to_param", {})
    return Loaded(path, {f"string_to_param.{key}": tensor for key, tensor in inner.items()})


def _is_lora(keys: Iterable[str]) -> bool:
    return any(re.match(pattern, key) for key in keys for pattern in detect.FORMS.values())


def _seems(keys: list[str]) -> str | None:
    """What a file that is not read any further seems to be."""
    found = [what for what, pattern in detect.OTHERS.items() if any(re.search(pattern, key) for key in keys)]
    return " and ".join(found).removeprefix("a ").removeprefix("an ") or None


def _about(path: Path, kind: str, *files: Weights) -> Report:
    """What can be said of any file."""
    entries = [entry for file in files for entry in file.tensors.values()]
    dtypes = Counter(dtype_name(entry.dtype) for entry in entries)
    metadata = {key: _parsed(value) for file in files for key, value in file.metadata.items()}
    tags: Counter[str] = Counter()
    frequencies = metadata.get("ss_tag_frequency")
    for counts in frequencies.values() if isinstance(frequencies, dict) else ():
        tags.update(counts)
    return Report(
        path=str(path),
        kind=kind,
        size=sum(lying.stat().st_size for file in files for lying in file.files),
        sha256=_sha256(path) if path.is_file() and path.stat().st_size <= HASHED else None,
        tensors=len(entries),
        parameters=sum(entry.count for entry in entries),
        dtypes=dict(dtypes.most_common()),
        trigger_words=metadata.get("modelspec.trigger_phrase"),
        tags=dict(tags.most_common(_TAGS)),
        metadata=metadata,
    )


def _lora(path: Path, weights: Weights, family: str | None) -> Report:
    report = _about(path, "LoRA", weights)
    try:
        read = reading.read(path, family)
    except ValueError as error:
        report.notes.append(str(error).removeprefix(f"{path}: "))
        return report
    report.kind, report.family, report.form = _kinds(read.updates), read.family, read.form
    if read.words:
        report.notes.append(f"with learned words: {', '.join(read.words)}")
    report.layers = [_update(layer, update) for layer, update in read.updates.items()]
    return report


def _update(layer: str, update: AnyChange) -> LayerReport:
    parameters = sum(tensor.numel() for tensor in taken_apart(update)[0].values())
    inner = update.of if isinstance(update, DoRA) else update
    rank = update.rank or None
    return LayerReport(layer, parameters, rank=rank, alpha=rank and update.scale * rank, norm=_norm(inner))


def _norm(update: AnyChange) -> float | None:
    """Of what is added to the weight; None where that depends on the weight."""
    if isinstance(update, Additive):
        return float(update.delta().norm())
    if not isinstance(update, Update):
        return None
    plain = without_mid(update)
    up, down = plain.up.double().flatten(1), plain.down.double().flatten(1)
    square = float(((up.T @ up) * (down @ down.T)).sum())  # of the norm of up @ down, without making that
    return abs(update.scale) * (max(square, 0.0) ** 0.5 if square == square else square)


def _kinds(updates: Changes) -> str:
    """E.g. "LoRA", or "DoRA of LoHa"."""
    names = dict.fromkeys(_kind(update) for update in updates.values())
    return " and ".join(names) or "LoRA"


def _kind(update: AnyChange) -> str:
    if isinstance(update, DoRA):
        return "DoRA" if isinstance(update.of, Update) else f"DoRA of {_kind(update.of)}"
    return {Update: "LoRA", Full: "whole weights"}.get(type(update), type(update).__name__)


def _plugin(stored: Weights, plugin: Mapping[str, Any]) -> Report:
    module, _, name = str(plugin["class"]).partition(":")
    report = _about(stored.files[0], name if name == "ControlNet" else "plugin", stored)
    report.family = plugin.get("file", {}).get("family")
    options = ", ".join(f"{key}={value}" for key, value in plugin.get("options", {}).items())
    report.notes.append(f"made by {module}.{name}({options}) of hcpdiff on {plugin.get('on')}")
    report.layers = _layers(stored.tensors)
    return report


def _words(stored: Weights) -> Report:
    report = _about(stored.files[0], "learned word", stored)
    for key, entry in stored.tensors.items():
        count = entry.shape[0] if len(entry.shape) > 1 else 1
        report.notes.append(f"{key}: {count} vectors of width {entry.shape[-1] if entry.shape else 1}")
    return report


def _model(model: ModelFiles) -> Report:
    kind = "model in one file" if model.layout else "model in a folder"
    report = _about(model.path, kind, *model.files.values())
    report.family = model.layout.title if model.layout else str(model.index.get("_class_name"))
    report.layers = _layers({name: model.entry(name) for name in model.places})
    return report


def _part(path: Path) -> Report:
    weights, config = open_folder(path), read_json(path / "config.json")
    report = _about(path, "part of a model", weights)
    names = config.get("architectures") or []
    report.family = config.get("_class_name") or (names[0] if names else None)
    if str(report.family).startswith("ControlNet") or str(report.family).endswith("ControlNetModel"):
        report.kind = "ControlNet"
    report.layers = _layers(weights.tensors)
    return report


def _checkpoint(path: Path) -> Report:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    files = [safetensors([file]) for file in sorted(path.glob("*.safetensors"))]
    report = _about(path, "checkpoint of a run", *files)
    missing = [name for name in manifest.get("sha256", {}) if not (path / name).is_file()]
    report.notes = [f"after step {manifest.get('step')}", *(f"{name} is missing" for name in missing)]
    report.notes += [f"{file.files[0].name}: {len(file.tensors)} tensors" for file in files]
    return report


def _layers(entries: Mapping[str, Entry]) -> list[LayerReport]:
    """Of tensors by name; a layer's shape is that of its weight."""
    shapes: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    for name, entry in entries.items():
        layer = layer_of(name) or name
        counts[layer] += entry.count
        if layer not in shapes or name.endswith(".weight"):
            shapes[layer] = list(entry.shape)
    return [LayerReport(layer, count, shapes[layer]) for layer, count in counts.items()]


def _parsed(text: str) -> Any:
    """A value of a header, which is text and often JSON."""
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except ValueError:  # a text that begins with a bracket
        return text


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
