"""What a config says of one plugin, and the mistakes that can be seen before a model is there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hcpdiff.plugins.base import MultiPluginBlock, PluginBlock
from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.targets import close_names


@dataclass
class PluginSpec:
    """One plugin of a config: its class and settings, where it works, and how it learns."""

    plugin: type[Plugin]
    on: str | Sequence[str] = "denoiser"  # the part of the family, or several, by attribute path; '' is the whole
    layers: Sequence[str] = ()  # targets inside that part
    from_layers: Sequence[str] = ()  # for kinds that take values from other layers
    to_layers: Sequence[str] = ()
    lr: float | None = None  # None: the optimizer's
    train: bool = True
    branch: str | None = None  # "negative" or "positive": only these rows, in runs with guidance
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {target: {"lr" or an option: value}}
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the class

    @property
    def between(self) -> bool:
        """Whether the plugin takes values from some layers to others."""
        return issubclass(self.plugin, (PluginBlock, MultiPluginBlock))

    @property
    def parts(self) -> list[str]:
        """The parts that `on` names."""
        return [self.on] if isinstance(self.on, str) else list(self.on)

    def check(self, where: str) -> None:
        """Raise ValueError for a setting that cannot be meant."""
        kind = self.plugin.__name__
        if len(self.parts) != 1 and (self.between or not self.parts):
            raise ValueError(f"{where}.on: {kind} works on one part of the model; give one name")
        for key in ("layers",) if self.between else ("from_layers", "to_layers"):
            if getattr(self, key):
                raise ValueError(
                    f"{where}.{key}: {kind} takes {'from_layers and to_layers' if self.between else 'layers'}"
                )
        if self.branch is not None and not self.plugin.branches:
            raise ValueError(f"{where}.branch: {kind} works on whole batches; remove it")
        self._check_options(where, self.options)
        self._check_lr(where, self.lr)
        for pattern, override in self.overrides.items():
            self._check_override(f"{where}.overrides.{pattern}", override)

    def build(
        self, layers: Sequence[Any], override: Mapping[str, Any], *, where: str, generator: torch.Generator
    ) -> Plugin:
        """The plugin for these layers, with this override of its options; what is random in it comes from `generator`.

        Raises:
            ValueError: an option is missing, or the plugin refuses one.
        """
        options = {**self.options, **{key: value for key, value in override.items() if key != "lr"}}
        parameters = self._parameters()
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in options:
                raise ValueError(f"{where}.{name}: {self.plugin.__name__} needs it")
        if "generator" in parameters:
            options["generator"] = generator
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator.initial_seed())
                return self.plugin(*layers, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    def _check_override(self, where: str, override: Mapping[str, Any]) -> None:
        if issubclass(self.plugin, MultiPluginBlock):
            raise ValueError(
                f"{where}: {self.plugin.__name__} is one plugin for all its layers; set its options directly"
            )
        if not isinstance(override, Mapping) or not override:
            raise ValueError(f"{where}: say what differs on these layers, e.g. {{lr: 1e-4}}")
        self._check_options(where, [key for key in override if key != "lr"])
        self._check_lr(where, override.get("lr"))

    def _check_options(self, where: str, names: Sequence[str] | Mapping[str, Any]) -> None:
        known = [name for name in self._parameters() if name != "generator"]
        for name in names:
            if name not in known:
                has = f"; it takes {', '.join(known)}" if known else ""
                raise ValueError(
                    f"{where}.{name}: {self.plugin.__name__} has no such option{close_names(name, known) or has}"
                )

    def _check_lr(self, where: str, lr: float | None) -> None:
        if lr is None:
            return
        if isinstance(lr, bool) or not isinstance(lr, (int, float)) or lr <= 0:
            raise ValueError(f"{where}.lr: {lr!r} would train nothing; give a number above 0, or set train: false")
        if not self.train:
            raise ValueError(f"{where}.lr: it would do nothing, because train is false; remove one of them")

    def _parameters(self) -> dict[str, inspect.Parameter]:
        """What the constructor takes after its layers."""
        return dict(list(inspect.signature(self.plugin).parameters.items())[2 if self.between else 1 :])
