"""The four kinds of plugin. A plugin changes what flows through a model without changing the model's code.

To write one, subclass a kind, say in `forward` what it computes, and name the class in a config. Its constructor gets
the layers that it works on, `(host)`, `(source, target)` or `(sources, targets)`, then its settings by keyword.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hcpdiff.plugins.hooks import CallState, Hook
from hcpdiff.plugins.plugin import Plugin, PluginInputs
from hcpdiff.plugins.targets import LayerRef
from hcpdiff.plugins.tree import outermost, plugin_hooks, replace
from hcpdiff.plugins.values import (
    Items,
    cut,
    first_tensor,
    pack_input,
    pack_output,
    paste,
    unpack_input,
    unpack_output,
)

__all__ = ["MultiPluginBlock", "Plugin", "PluginBlock", "PluginInputs", "SinglePluginBlock", "WrapPluginBlock"]


class SinglePluginBlock(Plugin):
    """One layer; `re:` gives many, each with its own plugin."""

    @abstractmethod
    def forward(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What the layer gives instead of `output`, which it computed from `args` and `kwargs`."""

    def connect(
        self, family: nn.Module, part: str, sources: Sequence[LayerRef], targets: Sequence[LayerRef]
    ) -> list[Hook]:
        return [Hook(self._run, ref.path).place(outermost(family, ref.path)) for ref in targets]

    def _run(self, hook: Hook, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.fused:
            return output
        self.follow(host)
        if self.branch is None:
            return self(host, args, kwargs, output)
        items = unpack_output(output)
        batch = len(items[first_tensor(items, f"{self.where}: {hook.path}")])
        rows = self.rows(batch)
        changed = self(host, cut(args, rows, batch), cut(kwargs, rows, batch), cut(output, rows, batch))
        return paste(output, changed, rows, batch)


class _Between(Plugin):
    """A plugin whose hooks on several layers pass values on during one call of the model.

    With gradient checkpointing the hooks run again in backward and use the values of the last call: run backward before
    the model is called again.
    """

    prefixes = ("pre_hook:", "re:")

    def __init__(self) -> None:
        super().__init__()
        self._state = CallState()

    def forget(self) -> None:
        self._state.clear()

    def choose(self, items: Items) -> int | str:
        """Which value of a layer is meant: by default its first tensor.

        Args:
            items: the values of a tuple or of positional arguments by index, those of keyword arguments by name.

        Returns:
            A key of items.
        """
        return first_tensor(items, self.where)

    @abstractmethod
    def _on_source(self, hook: Hook, items: Items) -> None: ...

    @abstractmethod
    def _on_target(self, hook: Hook, items: Items) -> Items: ...

    def connect(
        self, family: nn.Module, part: str, sources: Sequence[LayerRef], targets: Sequence[LayerRef]
    ) -> list[Hook]:
        model = outermost(family, part)
        hooks = [Hook(self._start, part, pre=True).place(model, first=True)]
        for method, refs in ((self._read, sources), (self._change, targets)):
            for i, ref in enumerate(refs):
                hook = Hook(method, ref.path, pre=ref.pre_hook, index=i)
                hooks.append(hook.place(outermost(family, ref.path)))
        return [*hooks, Hook(self._end, part).place(model)]

    def _start(self, hook: Hook, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._state.clear()

    def _end(self, hook: Hook, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            self._state.clear()

    def _read(self, hook: Hook, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        self.follow(layer)
        self._on_source(hook, unpack_output(output[0]) if output else unpack_input(args, kwargs))

    def _change(self, hook: Hook, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> Any:
        self.follow(layer)
        if output:
            return pack_output(output[0], self._on_target(hook, unpack_output(output[0])))
        return pack_input(self._on_target(hook, unpack_input(args, kwargs)))

    def _too_early(self, hook: Hook) -> ValueError:
        return ValueError(
            f"{self.where}: {hook.path!r} is changed before all source layers have run; "
            "choose sources that run earlier, or targets that run later"
        )


class PluginBlock(_Between):
    """One layer to one other, in pairs; `pre_hook:` means a layer's input, else its output, on both sides."""

    @abstractmethod
    def forward(self, source: Any, value: Tensor) -> Tensor:
        """The new value at the target layer, from the value at the source layer and the one that is there."""

    def read(self, items: Items) -> Any:
        """What of the source layer's values `forward` gets as `source`."""
        return items[self.choose(items)]

    def _on_source(self, hook: Hook, items: Items) -> None:
        self._state.values[0] = self.read(items)

    def _on_target(self, hook: Hook, items: Items) -> Items:
        if 0 not in self._state.values:
            raise self._too_early(hook)
        key, source = self.choose(items), self._state.values[0]
        batch = len(items[key])
        rows = self.rows(batch)
        changed = self(cut(source, rows, batch), cut(items[key], rows, batch))
        return {**items, key: paste(items[key], changed, rows, batch)}


class MultiPluginBlock(_Between):
    """Many layers to many; one plugin for all of them. It runs as soon as the last source layer has."""

    from_layers: ClassVar[Sequence[str]] = ()  # where a config names none
    to_layers: ClassVar[Sequence[str]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.num_sources = 0

    @abstractmethod
    def forward(self, sources: list[Any]) -> Sequence[Any]:
        """One result per target, in the order of `to_layers`, from one value per source, in that of `from_layers`."""

    def read(self, index: int, items: Items) -> Any:
        """What of source `index`'s values `forward` gets."""
        return items[self.choose(items)]

    def write(self, index: int, value: Tensor, result: Any) -> Tensor:
        """The new value at target `index`; by default `value + result`."""
        return value + result

    def _on_source(self, hook: Hook, items: Items) -> None:
        state = self._state
        state.values[hook.index] = self.read(hook.index, items)
        if state.last is None and len(state.values) == self.num_sources:
            state.last = hook.index
        if hook.index == state.last:  # so recomputation in backward runs `forward` where it ran before
            state.results = self([state.values[i] for i in range(self.num_sources)])

    def _on_target(self, hook: Hook, items: Items) -> Items:
        if self._state.results is None:
            raise self._too_early(hook)
        key, result = self.choose(items), self._state.results[hook.index]
        batch = len(items[key])
        rows = self.rows(batch)
        changed = self.write(hook.index, cut(items[key], rows, batch), cut(result, rows, batch))
        return {**items, key: paste(items[key], changed, rows, batch)}

    def connect(
        self, family: nn.Module, part: str, sources: Sequence[LayerRef], targets: Sequence[LayerRef]
    ) -> list[Hook]:
        self.num_sources = len(sources)
        return super().connect(family, part, sources, targets)


class WrapPluginBlock(Plugin):
    """Takes a layer's place and holds it as `self.host`; `re:` gives many, each with its own plugin.

    In the model's state_dict it stands for its host, so the keys there stay what they were.
    """

    branches = False
    wraps = True

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.register_load_state_dict_pre_hook(self._aim_at_host)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called instead of the layer."""

    def connect(
        self, family: nn.Module, part: str, sources: Sequence[LayerRef], targets: Sequence[LayerRef]
    ) -> list[Hook]:
        for ref in targets:
            self.host = outermost(family, ref.path)
            if not replace(family, self.host, self):
                raise ValueError(
                    f"{self.where}: {ref.path!r} is the whole model, which has no place to take; name a layer"
                )
        return []

    def disconnect(self, family: nn.Module) -> None:
        replace(family, self, self.host)
        for hook in plugin_hooks(self):
            hook.move(self.host)

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Any]:
        return self.host.state_dict(*args, prefix=prefix, **kwargs)

    def _aim_at_host(self, module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state if key.startswith(prefix)]:
            state[f"{prefix}host.{key.removeprefix(prefix)}"] = state.pop(key)
        state |= {prefix + name: tensor for name, tensor in self.own_state().items()}

    def __getattr__(self, name: str) -> Any:
        """Its own attribute, else the host's: code that reads `layer.weight` still can."""
        modules: Mapping[str, nn.Module] = self.__dict__.get("_modules", {})
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "host" not in modules:
                raise
            return getattr(modules["host"], name)
