"""One plugin, one safetensors file: its weights, and in the header all that is needed to attach it to a base model.

Keys are `<part>.<layer path>.<parameter>`, with the part named as in diffusers (`PARTS`), so that other tools can load
a LoRA: `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.loading import LoadReport
from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.spec import PluginSpec

# A family's parts as they are called in files.
PARTS = {
    "denoiser": "transformer",
    "text_encoders.clip_l": "text_encoder",
    "text_encoders.clip_g": "text_encoder_2",
    "text_encoders.t5": "text_encoder_3",
}
HEADER = "hcpdiff.plugin"
_SAVED = ("layers", "from_layers", "to_layers", "branch", "overrides")  # of a spec


@dataclass(frozen=True)
class PluginFile:
    """What is in a plugin's file."""

    path: Path
    spec: PluginSpec  # frozen, to attach it for inference
    tensors: dict[str, Tensor]  # {layer path in the family.parameter: tensor}
    scales: dict[str, float]  # {layer path: what its update is still to be multiplied with}, where that is not 1
    metadata: dict[str, str]  # what the writer added


def save(group: PluginGroup, name: str, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write one plugin of a group; the file appears only when it is complete.

    Args:
        metadata: more for the header, such as the base model and the step; what is no string becomes JSON.
    """
    spec, plugins = group.specs[name], group.plugins(name)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for layer, plugin in plugins.items():
        packed, scale = plugin.to_file()
        tensors |= {f"{layer}.{key}": tensor for key, tensor in packed.items()}
        if scale != 1:
            scales[layer] = scale
    settings = {"class": f"{spec.plugin.__module__}:{spec.plugin.__qualname__}", "scales": scales}
    settings["on"] = spec.on if isinstance(spec.on, str) else list(spec.on)
    settings |= {key: getattr(spec, key) for key in _SAVED if getattr(spec, key)}
    settings["options"] = next(iter(plugins.values())).file_options(spec.options)
    header = {key: value if isinstance(value, str) else _json(value, key) for key, value in (metadata or {}).items()}
    header |= spec.plugin.file_header({_outside(layer): plugin for layer, plugin in plugins.items()})
    header |= {"format": "pt", HEADER: _json(settings, f"plugins.{name}")}
    _write(Path(path), {_outside(key): tensor for key, tensor in tensors.items()}, header)


def load(path: str | Path, *, trust: Sequence[str] = ()) -> PluginFile:
    """Read a file that `save` wrote.

    Args:
        trust: packages besides hcpdiff whose plugin classes a file may name. Their code is imported and run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plugin's file, or its class is not to be trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such plugin file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {_inside(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: this is no safetensors file: {error}") from None
    if HEADER not in header:
        raise ValueError(
            f"{path}: its header does not say which plugin this is; only files that hcpdiff wrote load here"
        )
    settings = json.loads(header.pop(HEADER))
    plugin, scales = _plugin_class(settings.pop("class"), path, trust), settings.pop("scales")
    return PluginFile(path, PluginSpec(plugin, train=False, **settings), tensors, scales, header)


def load_into(group: PluginGroup, name: str, path: str | Path, *, trust: Sequence[str] = ()) -> LoadReport:
    """Load a file into a plugin that is attached already.

    Raises:
        ValueError: listing all keys that are missing, unexpected or of another shape. Nothing is loaded then.
    """
    return _fill(group, name, load(path, trust=(*trust, group.specs[name].plugin.__module__)))


def attach_files(
    family: nn.Module, files: Mapping[str, tuple[str | Path, float]], *, trust: Sequence[str] = ()
) -> PluginGroup:
    """Attach plugins from their files alone, for inference.

    Args:
        files: {plugin name: (path, strength)}; plugins on one layer work in this order.
        trust: as for `load`.
    """
    read = {name: load(path, trust=trust) for name, (path, _) in files.items()}
    group = attach(family, {name: file.spec for name, file in read.items()})
    try:
        for name, file in read.items():
            _fill(group, name, file)
            if files[name][1] != 1:
                group.set_strength(name, files[name][1])
    except ValueError:
        group.detach()
        raise
    return group


def attach_file(
    family: nn.Module, path: str | Path, *, strength: float = 1.0, name: str = "plugin", trust: Sequence[str] = ()
) -> PluginGroup:
    """Attach one plugin from its file alone."""
    return attach_files(family, {name: (path, strength)}, trust=trust)


def merge(
    family: nn.Module, source: PluginGroup | str | Path, *, strength: float = 1.0, trust: Sequence[str] = ()
) -> None:
    """Add a plugin's effect to the base weights for good; attached plugins come off.

    Raises:
        ValueError: a plugin is more than a change of weights. Nothing is changed then.
    """
    if strength == 0:
        raise ValueError("merge: strength 0 would change nothing")
    group = source if isinstance(source, PluginGroup) else attach_file(family, source, trust=trust)
    try:
        for a in group.attachments:
            if a.plugin.delta() is None:
                raise ValueError(f"merge: {type(a.plugin).__name__} is more than a change of weights; keep it a plugin")
        for a in group.attachments:
            a.plugin.strength *= strength
        group.fuse()
    except ValueError:
        if group is not source:
            group.detach()
        raise
    group.keep_fused()


def _fill(group: PluginGroup, name: str, file: PluginFile) -> LoadReport:
    given = dict(file.tensors)
    for layer, plugin in group.plugins(name).items():
        packed = {key: given.pop(f"{layer}.{key}") for key in plugin.own_state() if f"{layer}.{key}" in given}
        own = plugin.from_file(packed, file.scales.get(layer, 1.0))
        given |= {f"{layer}.{key}": tensor for key, tensor in own.items()}
    return group.load_plugin_state_dict(name, given, where=f"plugins.{name}: {file.path}")


def _outside(path: str) -> str:
    """A path in the family as it is called in files."""
    for part, name in PARTS.items():
        if f"{path}.".startswith(f"{part}."):
            return name + path.removeprefix(part)
    return path


def _inside(key: str) -> str:
    """Inverse of `_outside`."""
    for part, name in PARTS.items():
        if f"{key}.".startswith(f"{name}."):
            return part + key.removeprefix(name)
    return key


def _plugin_class(name: str, path: Path, trust: Sequence[str]) -> type[Plugin]:
    module, _, attribute = name.partition(":")
    if not any(f"{module}.".startswith(f"{package}.") for package in ("hcpdiff.plugins", *trust)):
        raise ValueError(
            f"{path}: its plugin is {attribute} of {module}; to run that package's code, trust {module.split('.')[0]!r}"
        )
    found = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, Plugin) and found.__module__ == module):
        raise ValueError(f"{path}: {name} is no plugin class")
    return found


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise ValueError(f"{where}: cannot be written to a file's header: {error}") from None


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary, header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
