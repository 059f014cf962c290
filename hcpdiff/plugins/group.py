"""The plugins of a run: fed, fused, trained, saved and taken off together."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hcpdiff.plugins import fusing
from hcpdiff.plugins.hooks import Hook
from hcpdiff.plugins.loading import LoadReport, copy_all
from hcpdiff.plugins.plugin import Plugin, PluginInputs
from hcpdiff.plugins.spec import PluginSpec
from hcpdiff.plugins.targets import LayerRef


@dataclass
class Attachment:
    """One plugin and the layers that it works on."""

    name: str
    path: str  # of its layer in the family; its key in files
    plugin: Plugin
    part: str
    sources: Sequence[LayerRef]
    targets: Sequence[LayerRef]
    lr: float | None = None
    hooks: list[Hook] | None = None  # None while it is detached

    def attach(self, family: nn.Module) -> None:
        if self.hooks is None:
            self.hooks = self.plugin.connect(family, self.part, self.sources, self.targets)

    def detach(self, family: nn.Module) -> None:
        if self.hooks is not None:
            for hook in self.hooks:
                hook.remove()
            self.plugin.disconnect(family)
            self.plugin.forget()
            self.hooks = None


class PluginGroup(nn.Module):
    """The plugins of one family, by plugin name and layer path. They are its children and not their layers', but take
    training or evaluation mode from these.

    A deepcopy includes the family, so copy both in one go: `copy.deepcopy((family, group))`. `members` has the plugins
    alone and nothing of the family, except what a Wrap holds.
    """

    def __init__(self, family: nn.Module, specs: Mapping[str, PluginSpec], attachments: Sequence[Attachment]) -> None:
        super().__init__()
        self.__dict__["_family"] = family  # in use, but not a child
        self.specs = dict(specs)
        self.attachments = list(attachments)
        self.members = nn.ModuleDict({name: nn.ModuleDict() for name in specs})
        for a in self.attachments:
            self.members[a.name].add_module("/" + a.path.replace(".", "/"), a.plugin)
        self._originals: list[fusing.Original] = []

    @property
    def family(self) -> nn.Module:
        return self.__dict__["_family"]

    def plugins(self, name: str) -> dict[str, Plugin]:
        """The plugins of this name, by layer path."""
        return {a.path: a.plugin for a in self._named(name)}

    def feed(self, inputs: PluginInputs) -> None:
        """Give the step's inputs to every plugin. They stay until the next call, as backward may compute again."""
        for a in self.attachments:
            a.plugin.forget()
            a.plugin.inputs = a.plugin.prepare(inputs, self.family)

    def check_reads(self, names: Iterable[str]) -> None:
        """Raise for inputs that no plugin reads, such as a control image without a ControlNet."""
        for name in names:
            if not any(a.plugin.reads is None or name in a.plugin.reads for a in self.attachments):
                raise ValueError(f"{name}: no plugin of this run reads it; add one that does, or leave it out")

    def set_strength(self, name: str, value: float) -> None:
        """How strongly a plugin works: 0 not at all, 1 as trained."""
        for a in self._named(name):
            if a.plugin.strength == value:
                continue
            if not a.plugin.adjustable:
                raise ValueError(f"plugins.{name}: {type(a.plugin).__name__} has no strength to set")
            if a.plugin.fused:
                raise ValueError(f"plugins.{name}: its strength is fixed while it is fused; call unfuse() first")
            a.plugin.strength = float(value)

    def attach(self, name: str | None = None) -> None:
        """Attach again what was detached, in the order of the config, after what is still attached."""
        for a in self._named(name):
            a.attach(self.family)
        forget_compiled()

    def detach(self, name: str | None = None) -> None:
        """Take all plugins off, or one by name. Without plugins a model is exactly as if there had never been any."""
        self.unfuse()
        for a in reversed(self._named(name)):
            a.detach(self.family)
        forget_compiled()

    def fuse(self) -> None:
        """Fold every plugin that can be folded into the base weights, for speed; `unfuse` restores them bit by bit.

        Raises:
            ValueError: there is no such plugin, or one stands behind another on its layer that cannot be folded.
        """
        if not self._originals:
            self._originals = fusing.fuse(self.family, self._attached())

    def unfuse(self) -> None:
        """Put the base weights back and let the plugins work by themselves again."""
        fusing.restore(self._originals)
        self._originals = []
        for a in self.attachments:
            a.plugin.fused = False

    def keep_fused(self) -> None:
        """Make fused weights the base weights for good, and take all plugins off."""
        self._originals = []
        self.detach()

    def param_groups(self) -> list[dict[str, Any]]:
        """What an optimizer trains, by plugin and learning rate: {"params", "lr" (None: its own), "name"} each."""
        groups: dict[tuple[str, float | None], list[nn.Parameter]] = {}
        for a in self.attachments:
            params = [p for p in a.plugin.own_parameters().values() if p.requires_grad]
            if params:
                groups.setdefault((a.name, a.lr), []).extend(params)
        return [
            {"params": params, "lr": lr, "name": name if lr == self.specs[name].lr else f"{name} (lr {lr:g})"}
            for (name, lr), params in groups.items()
        ]

    def trains_on(self, part: str) -> bool:
        """Whether a plugin on this part of the family learns, e.g. "text_encoders"."""
        return any(
            f"{ref.path}.".startswith(f"{part}.") and any(p.requires_grad for p in a.plugin.own_parameters().values())
            for a in self._attached()
            for ref in (*a.sources, *a.targets)
        )

    def plugin_state_dict(self, name: str) -> dict[str, Tensor]:
        """One plugin's weights: {layer path.parameter: tensor}."""
        return {f"{a.path}.{key}": tensor for a in self._named(name) for key, tensor in a.plugin.own_state().items()}

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """All plugins' weights: {plugin name.layer path.parameter: tensor}; nothing of the layers that a Wrap holds."""
        result: dict[str, Any] = {} if destination is None else destination
        for name in self.specs:
            result |= {f"{prefix}{name}.{key}": tensor for key, tensor in self.plugin_state_dict(name).items()}
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Inverse of `state_dict`; a LoadReport.

        Raises:
            ValueError: listing all keys that are missing, unexpected or of another shape. Nothing is loaded then.
        """
        return copy_all(self.state_dict(), state_dict, where="plugins")

    def load_plugin_state_dict(self, name: str, state: Mapping[str, Tensor], *, where: str | None = None) -> LoadReport:
        """Inverse of `plugin_state_dict`; raises as `load_state_dict` does, naming `where`."""
        return copy_all(self.plugin_state_dict(name), state, where=where or f"plugins.{name}")

    def _attached(self) -> list[Attachment]:
        return [a for a in self.attachments if a.hooks is not None]

    def _named(self, name: str | None) -> list[Attachment]:
        if name is not None and name not in self.specs:
            raise ValueError(f"plugins.{name}: there is no such plugin, only {', '.join(self.specs) or 'none'}")
        return [a for a in self.attachments if name in (None, a.name)]


def forget_compiled() -> None:
    """Make compiled models notice that hooks were added: they are traced again at the next call."""
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
