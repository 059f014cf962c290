"""The entries of `plugins:`, which set a plugin's class and where it works side by side."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from hcpdiff.config.binding import Call, bind, named
from hcpdiff.config.interpolation import UNKNOWN
from hcpdiff.config.mistakes import Key, shown

if TYPE_CHECKING:
    from hcpdiff.config.reading import Reader

_OURS = ("plugin", "options")  # fields that are filled from the other keys


def is_plugin_spec(origin: Any) -> bool:
    """Whether this type is hcpdiff.plugins' PluginSpec, without importing it."""
    return getattr(origin, "__qualname__", "") == "PluginSpec" and origin.__module__ == "hcpdiff.plugins.spec"


def read_plugin(reader: Reader, node: dict[str, Any], spec: Any, key: Key) -> Any:
    """The plan of one entry: PluginSpec's own keys, and the options of the class that `_target_` names."""
    if "_target_" not in node:
        reader.check_names(node, key, target_expected=True)
        return reader.wrong(key, "needs a `_target_`: the class of the plugin")
    plugin = named(reader, node, key)
    if plugin is UNKNOWN:
        return UNKNOWN
    if not (inspect.isclass(plugin) and issubclass(plugin, importlib.import_module("hcpdiff.plugins.plugin").Plugin)):
        return reader.wrong((*key, "_target_"), f"{node['_target_']} is not a plugin; name a class of hcpdiff.plugins")
    before = len(reader.mistakes)
    own = [field.name for field in dataclasses.fields(spec) if field.name not in _OURS]
    arity = 2 if spec(plugin=plugin).between else 1
    settings = {name: value for name, value in node.items() if name in own}
    options = {name: value for name, value in node.items() if name not in own}
    placed = bind(reader, settings, spec, node["_target_"], key, skip=("plugin",))
    bound = bind(reader, options, plugin, node["_target_"], key, arity=arity, also=own, skip=("generator",))
    _read_overrides(reader, node, plugin, key, arity)
    kwargs = {**placed.kwargs, "plugin": plugin, "options": bound.kwargs}
    if len(reader.mistakes) == before:
        try:
            spec(**kwargs).check(shown(key))
        except ValueError as error:
            reader.wrong_text(key, str(error))
    return Call(spec, node["_target_"], key, [], kwargs)


def _read_overrides(reader: Reader, node: dict[str, Any], plugin: Any, key: Key, arity: int) -> None:
    """Options that differ on some layers: the same names and types as the plugin's own."""
    overrides = node.get("overrides")
    for pattern, override in overrides.items() if isinstance(overrides, dict) else ():
        if isinstance(override, dict):
            options = {name: value for name, value in override.items() if name != "lr"}
            place = (*key, "overrides", pattern)
            bind(reader, options, plugin, node["_target_"], place, arity=arity, also=["lr"], complete=False)
