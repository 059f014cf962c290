"""How plugins reach into a call of a model: by hooks that survive deepcopy and pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hook:
    """One method of a plugin, called before or after a layer.

    It is an object and not a closure, so a copy of a plugged model calls the copy's plugins.

    Args:
        call: `call(hook, layer, args, kwargs)` before the layer, `call(hook, layer, args, kwargs, output)` after it;
            what it returns, unless None, takes the place of (args, kwargs) or of the output.
        path: the layer's, for messages.
        index: which of several sources or targets of the plugin this is.
    """

    def __init__(self, call: Callable[..., Any], path: str, *, pre: bool = False, index: int = 0) -> None:
        self.call, self.path, self.pre, self.index = call, path, pre, index
        self._first = False
        self._handle: RemovableHandle | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> Any:
        return self.call(self, layer, args, kwargs, *output)

    @property
    def owner(self) -> object:
        """The plugin."""
        return getattr(self.call, "__self__", None)

    def place(self, layer: nn.Module, *, first: bool = False) -> Hook:
        """Run at this layer from now on; `first`: before the hooks that it has already."""
        register = layer.register_forward_pre_hook if self.pre else layer.register_forward_hook
        self._first = first
        self._handle = register(self, with_kwargs=True, prepend=first)
        return self

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def move(self, layer: nn.Module) -> None:
        """Run at another layer instead."""
        self.remove()
        self.place(layer, first=self._first)


class CallState:
    """What the hooks of one plugin share during one call of the model. A copy starts empty, and nothing is saved."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}  # of the sources seen so far
        self.results: Any = None
        self.last: int | None = None  # the source that came last and so made the results

    def clear(self) -> None:
        self.values, self.results, self.last = {}, None, None

    def __reduce__(self) -> tuple[type[CallState], tuple[()]]:
        return CallState, ()
