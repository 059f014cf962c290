"""From what a config says of the plugins to plugins that work on a model."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from hcpdiff import randomness
from hcpdiff.plugins.base import MultiPluginBlock
from hcpdiff.plugins.group import Attachment, PluginGroup
from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.spec import PluginSpec
from hcpdiff.plugins.targets import LayerRef, close_names, find_layers, matches
from hcpdiff.plugins.tree import named_layers

__all__ = ["PluginGroup", "PluginSpec", "attach"]


def attach(family: nn.Module, specs: Mapping[str, PluginSpec], *, seed: int = 0) -> PluginGroup:
    """Build plugins and let them work on a model; `PluginGroup.detach` undoes it.

    All targets are found before anything changes, so a mistake leaves the model as it was. Attach before compiling:
    what was compiled already is traced again.

    Args:
        family: the model whose parts `on` names.
        specs: {plugin name: spec}; plugins on one layer work in this order.
        seed: of the first weights, which depend on this, the plugin's name and the layer's path alone.

    Raises:
        ValueError: a setting is wrong, matches nothing, or would train or change nothing.
    """
    sites = [site for name, spec in specs.items() for site in _resolve(family, name, spec)]
    # A Multi plugin may copy layers, so it is built while they are as clean as they will ever be.
    order = sorted(sites, key=lambda site: not issubclass(site.spec.plugin, MultiPluginBlock))
    built = {id(site): _build(site, seed) for site in order}
    group = PluginGroup(family, specs, [built[id(site)] for site in sites])
    for name, spec in specs.items():
        _check_trains(group, name, spec)
    group.train(family.training)
    group.attach()
    return group


@dataclass
class _Site:
    """Where one plugin will be: its layers' paths are those in the family."""

    name: str
    spec: PluginSpec
    part: str
    sources: Sequence[LayerRef]
    targets: Sequence[LayerRef]
    override: Mapping[str, Any]

    @property
    def path(self) -> str:
        """What the plugin is called in files."""
        if issubclass(self.spec.plugin, MultiPluginBlock):
            return self.part
        return "->".join(ref.path for ref in (*self.sources, *self.targets))


def _resolve(family: nn.Module, name: str, spec: PluginSpec) -> list[_Site]:
    where = f"plugins.{name}"
    if not re.fullmatch(r"[A-Za-z_][\w-]*", name) or hasattr(nn.ModuleDict, name):
        raise ValueError(
            f"{where}: a plugin cannot be called this; use letters, digits, '_' and '-', such as 'my_{name}'"
        )
    spec.check(where)
    layers = dict(named_layers(family))
    for on in spec.parts:
        if on not in layers:
            raise ValueError(
                f"{where}.on: {on!r} is no part of {type(family).__name__}{close_names(on, layers)}; "
                f"its parts are {', '.join(n for n, _ in family.named_children())}"
            )
    if not spec.between:
        found = find_in_parts({n: layers[n] for n in spec.parts}, spec, where)
        check_overrides(where, spec, [ref for refs in found.values() for ref in refs])
        return [
            _site(name, spec, part, [], [ref], _override(spec, ref)) for part, refs in found.items() for ref in refs
        ]
    (on,) = spec.parts
    part = layers[on]
    if issubclass(spec.plugin, MultiPluginBlock):
        sources = _find(part, spec.from_layers or spec.plugin.from_layers, f"{where}.from_layers", spec)
        targets = _find(part, spec.to_layers or spec.plugin.to_layers, f"{where}.to_layers", spec)
        return [_site(name, spec, on, sources, targets, {})]
    return [_site(name, spec, on, [a], [b], _override(spec, b)) for a, b in find_pairs(part, where, spec)]


def find_in_parts(parts: Mapping[str, nn.Module], spec: PluginSpec, where: str) -> dict[str, list[LayerRef]]:
    """The layers that a plugin works on, by part; every selector matches something in at least one of them.

    Raises:
        ValueError: a selector matches nothing.
    """
    if len(parts) == 1 or not spec.layers:
        part, module = next(iter(parts.items()))
        return {part: _find(module, spec.layers, f"{where}.layers", spec)}
    found: dict[str, dict[str, LayerRef]] = {part: {} for part in parts}
    for i, pattern in enumerate(spec.layers):
        misses: list[str] = []
        for part, module in parts.items():
            try:
                found[part] |= {ref.path: ref for ref in _find(module, [pattern], f"{where}.layers", spec)}
            except ValueError as miss:
                misses.append(str(miss).replace(".layers[0]", f".layers[{i}]", 1))
        if len(misses) == len(parts):
            raise ValueError(misses[0])
    return {part: list(refs.values()) for part, refs in found.items()}


def _find(
    part: nn.Module, patterns: Sequence[str], where: str, spec: PluginSpec, *, repeat: bool = False
) -> list[LayerRef]:
    return find_layers(
        part, patterns, where=where, prefixes=spec.plugin.prefixes, takes=spec.plugin.takes, repeat=repeat
    )


def find_pairs(part: nn.Module, where: str, spec: PluginSpec) -> list[tuple[LayerRef, LayerRef]]:
    """The layers of one part that a plugin takes values from and to, in pairs.

    Raises:
        ValueError: a selector or an override matches nothing, or they make no pairs.
    """
    sources = _find(part, spec.from_layers, f"{where}.from_layers", spec, repeat=True)
    targets = _find(part, spec.to_layers, f"{where}.to_layers", spec, repeat=True)
    if len(sources) != len(targets):
        raise ValueError(
            f"{where}: from_layers names {len(sources)} layers and to_layers {len(targets)}; they are taken in pairs, "
            f"so the numbers must agree: {[r.path for r in sources]} and {[r.path for r in targets]}"
        )
    pairs = list(zip(sources, targets, strict=True))
    seen: set[tuple[str, str]] = set()
    for a, b in pairs:
        if (a.path, b.path) in seen:
            raise ValueError(f"{where}: the pair {a.path!r} -> {b.path!r} is named twice")
        seen.add((a.path, b.path))
    check_overrides(where, spec, targets)
    return pairs


def _site(
    name: str, spec: PluginSpec, part: str, sources: Sequence[LayerRef], targets: Sequence[LayerRef], override: Any
) -> _Site:
    def whole(ref: LayerRef) -> LayerRef:
        return LayerRef(f"{part}.{ref.path}".strip("."), ref.layer, ref.pre_hook)

    return _Site(name, spec, part, [whole(ref) for ref in sources], [whole(ref) for ref in targets], override)


def _override(spec: PluginSpec, ref: LayerRef) -> dict[str, Any]:
    """What the overrides say of this layer; where several match, the last one counts."""
    chosen: dict[str, Any] = {}
    for pattern, override in spec.overrides.items():
        if matches(ref.path, pattern):
            chosen |= override
    return chosen


def check_overrides(where: str, spec: PluginSpec, targets: Sequence[LayerRef]) -> None:
    """Raise for an override that matches none of a plugin's layers."""
    paths = [ref.path for ref in targets]
    for pattern in spec.overrides:
        if not any(matches(path, pattern) for path in paths):
            raise ValueError(
                f"{where}.overrides.{pattern}: matches none of the {len(paths)} layers of this plugin"
                f"{close_names(pattern.removeprefix('re:'), paths)}"
            )


def _build(site: _Site, seed: int) -> Attachment:
    where = f"plugins.{site.name}"
    layers: list[Any] = [ref.layer for ref in site.targets]
    if issubclass(site.spec.plugin, MultiPluginBlock):
        layers = [[ref.layer for ref in site.sources], layers]
    elif site.spec.between:
        layers = [ref.layer for ref in (*site.sources, *site.targets)]
    generator = randomness.generator(seed, "plugin", site.name, site.path)
    plugin = site.spec.build(layers, site.override, where=where, generator=generator)
    plugin.where, plugin.branch = where, site.spec.branch
    _move_to_layer(plugin, site.targets[0].layer)
    for parameter in plugin.own_parameters().values():
        parameter.requires_grad_(site.spec.train)
    lr = site.override.get("lr", site.spec.lr)
    return Attachment(site.name, site.path, plugin, site.part, site.sources, site.targets, lr)


def _move_to_layer(plugin: Plugin, layer: nn.Module) -> None:
    parameter = next(layer.parameters(), None)
    if parameter is not None:
        plugin.to(parameter.device)


def _check_trains(group: PluginGroup, name: str, spec: PluginSpec) -> None:
    """An lr for a plugin without parameters is a mistake."""
    lrs = [spec.lr, *(override.get("lr") for override in spec.overrides.values())]
    if any(lr is not None for lr in lrs) and not any(p.own_parameters() for p in group.plugins(name).values()):
        raise ValueError(f"plugins.{name}.lr: {spec.plugin.__name__} has nothing to train; remove it")


class _Callable(ModuleType):
    """`hcpdiff.plugins.attach(...)` is the function, although it is this module too."""

    def __call__(self, *args: Any, **kwargs: Any) -> PluginGroup:
        return attach(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
