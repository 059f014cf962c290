"""One plugin, one safetensors file: its weights, and in the header all that is needed to attach it to a base model.

A LoRA and its kin are written in the form that most other programs load for a family (see `hcpdiff.formats`), others as
`<part>.<layer path>.<parameter>` with the part named as in diffusers. LoRAs of other programs are read too.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hcpdiff.formats import reading
from hcpdiff.formats.lora_files import parted, read_tensors, write_tensors
from hcpdiff.formats.names import ARCHITECTURES
from hcpdiff.plugins import packing
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.loading import LoadReport
from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.spec import PluginSpec
from hcpdiff.plugins.weight_change import WeightChange

# Parts as files call them, where the family is not known to `hcpdiff.formats`.
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
    settings: dict[str, Any] = {"class": f"{spec.plugin.__module__}:{spec.plugin.__qualname__}", "scales": {}}
    settings["on"] = spec.on if isinstance(spec.on, str) else list(spec.on)
    settings |= {key: getattr(spec, key) for key in _SAVED if getattr(spec, key)}
    settings["options"] = next(iter(plugins.values())).file_options(spec.options)
    arch, updates = packing.architecture_of(group.family), packing.updates_of(plugins)
    parts = PARTS if arch is None else arch.folders
    apart = issubclass(spec.plugin, WeightChange)
    packed = None if arch is None or updates is None else packing.pack(updates, arch, diffusers_too=not apart)
    if packed is None:
        tensors, settings["scales"] = _pack(plugins, parts)
        more = spec.plugin.file_header({packing.outside(layer, parts): plugin for layer, plugin in plugins.items()})
        settings["file"] = {"form": "hcpdiff", "family": arch and arch.name}
    else:
        tensors, more, settings["file"] = packed
        if spec.plugin is WeightChange and settings["file"]["form"] == "kohya":  # the tensors say it all
            settings |= {"options": {}, "overrides": {}}
    header = {key: value if isinstance(value, str) else _json(value, key) for key, value in (metadata or {}).items()}
    header |= {**more, "format": "pt", HEADER: _json(settings, f"plugins.{name}")}
    write_tensors(Path(path), tensors, header, hashed=True)


def load(path: str | Path, *, family: nn.Module | None = None, trust: Sequence[str] = ()) -> PluginFile:
    """Read a file that `save` wrote, or a LoRA of another program.

    Args:
        family: the model that it is for. LoRAs of other programs need it.
        trust: packages besides hcpdiff whose plugin classes a file may name. Their code is imported and run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plugin's file, its class is not to be trusted, or it holds what this model does not have.
    """
    path = Path(path).expanduser()
    if path.is_dir() and family is not None:
        return _foreign(path, family, {})
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such plugin file")
    stored, header = read_tensors(path)
    if HEADER not in header:
        if family is None:
            raise ValueError(
                f"{path}: its header does not say which plugin this is; a LoRA of another program can be loaded into a "
                "model, which says what its keys mean"
            )
        return _foreign(path, family, header)
    stored, _ = parted(stored)
    settings = json.loads(header.pop(HEADER))
    plugin = _plugin_class(settings.pop("class"), path, trust)
    scales, note = settings.pop("scales"), settings.pop("file", {})
    spec = PluginSpec(plugin, train=False, **settings)
    if note.get("form") == "kohya":
        updates = packing.unpack(stored, note, str(path))
        spec = packing.spec_of(updates, spec) if plugin is WeightChange else spec
        tensors, scales = packing.tensors_of(updates, plugin), note["scales"]
    else:
        tensors = {_inside(key, note): tensor for key, tensor in stored.items()}
    return PluginFile(path, spec, tensors, scales, header)


def load_into(group: PluginGroup, name: str, path: str | Path, *, trust: Sequence[str] = ()) -> LoadReport:
    """Load a file into a plugin that is attached already.

    Raises:
        ValueError: listing all keys that are missing, unexpected or of another shape. Nothing is loaded then.
    """
    trust = (*trust, group.specs[name].plugin.__module__)
    return _fill(group, name, load(path, family=group.family, trust=trust))


def attach_files(
    family: nn.Module, files: Mapping[str, tuple[str | Path, float]], *, trust: Sequence[str] = ()
) -> PluginGroup:
    """Attach plugins from their files alone, for inference.

    Args:
        files: {plugin name: (path, strength)}; plugins on one layer work in this order.
        trust: as for `load`.
    """
    read = {name: load(path, family=family, trust=trust) for name, (path, _) in files.items()}
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
            if a.plugin.delta_for(a.targets[0].layer) is None:
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


def _foreign(path: Path, family: nn.Module, header: dict[str, str]) -> PluginFile:
    arch = packing.architecture_of(family)
    read = reading.read(path, arch and arch.name)
    updates = packing.fitted(family, read.updates, str(path))
    scales = {layer: update.scale for layer, update in updates.items() if update.scale != 1}
    spec = packing.spec_of(updates)
    return PluginFile(path, spec, packing.tensors_of(updates, spec.plugin), scales, header)


def _pack(plugins: Mapping[str, Plugin], parts: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for layer, plugin in plugins.items():
        packed, scale = plugin.to_file()
        tensors |= {packing.outside(f"{layer}.{key}", parts): tensor for key, tensor in packed.items()}
        if scale != 1:
            scales[layer] = scale
    return tensors, scales


def _inside(key: str, note: Mapping[str, Any]) -> str:
    """A key of a file as the family calls it. Old files have no note, and every denoiser as a transformer."""
    arch = ARCHITECTURES.get(str(note.get("family")))
    for part, name in (PARTS if arch is None else arch.folders).items():
        if f"{key}.".startswith(f"{name}."):
            return packing.flattened(part + key.removeprefix(name), note.get("flat", ()))
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
