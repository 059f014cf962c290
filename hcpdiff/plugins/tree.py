"""Finding and replacing layers in a model in which some are wrapped by plugins."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import nn

from hcpdiff.plugins.hooks import Hook


def is_wrap(module: nn.Module) -> bool:
    """Whether this is a plugin in the place of the layer that it holds as `host`."""
    return getattr(type(module), "wraps", False)


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer itself, without plugins around it."""
    while is_wrap(module):
        module = module.get_submodule("host")
    return module


def named_layers(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All layers by the paths that they have without plugins; a shared layer appears under each of its names."""
    root = unwrapped(root)
    yield prefix, root
    for name, child in root._modules.items():
        if child is not None:
            yield from named_layers(child, f"{prefix}.{name}" if prefix else name)


def outermost(root: nn.Module, path: str) -> nn.Module:
    """What stands at this path of the unplugged model: the layer, or the last plugin wrapped around it."""
    module = root
    for name in path.split(".") if path else ():
        module = unwrapped(module).get_submodule(name)
    return module


def replace(root: nn.Module, old: nn.Module, new: nn.Module) -> int:
    """Put `new` wherever `old` is in the tree, under every name that it has; the number of places."""
    places = [(parent, name) for parent in root.modules() for name, child in parent._modules.items() if child is old]
    for parent, name in places:
        if parent is not new:
            setattr(parent, name, new)
    return len(places)


def clean_copy(layer: nn.Module) -> nn.Module:
    """A deep copy of a layer without the plugins that work on it."""
    result = unwrapped(copy.deepcopy(layer))
    for module in list(result.modules()):
        if is_wrap(module):
            replace(result, module, unwrapped(module))
    for module in result.modules():
        for hook in plugin_hooks(module):
            hook.remove()
    return result


def plugin_hooks(module: nn.Module) -> list[Hook]:
    """The hooks of plugins on this very module."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if isinstance(hook, Hook)]
