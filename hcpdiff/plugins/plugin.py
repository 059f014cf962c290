"""What every plugin is, whatever it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from hcpdiff.plugins.hooks import Hook
from hcpdiff.plugins.targets import LayerRef


@dataclass(frozen=True)
class PluginInputs:
    """What the current step gives to every plugin; it stays until the next step, and copies of a plugin share it."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # from the data, e.g. control_image (B, 3, H, W)
    branches: Mapping[str, slice] = field(default_factory=dict)  # rows of the batch, e.g. {"negative": slice(0, 4)}
    timesteps: Tensor | None = None  # (B,) in [0, 1000]

    def __deepcopy__(self, memo: dict[int, Any]) -> PluginInputs:
        return self


class Plugin(nn.Module, ABC):
    """The base of the four kinds; write a plugin by subclassing one of those."""

    accepts: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)  # a container stands for these inside it
    prefixes: ClassVar[tuple[str, ...]] = ("re:",)  # of the targets
    adjustable: ClassVar[bool] = False  # whether `forward` heeds `strength`
    branches: ClassVar[bool] = True  # whether it can work on some rows of a batch
    wraps: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...] | None] = None  # which of the step's tensors it uses; None: nobody knows

    def __init__(self) -> None:
        super().__init__()
        self.where = type(self).__name__  # for messages; `attach` sets the config key
        self.branch: str | None = None  # None: every row of the batch
        self.strength = 1.0
        self.fused = False  # its effect is in the base weights now
        self.inputs = PluginInputs()

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        """Whether this plugin can work on the layer."""
        return isinstance(layer, cls.accepts)

    @abstractmethod
    def connect(
        self, family: nn.Module, part: str, sources: Sequence[LayerRef], targets: Sequence[LayerRef]
    ) -> list[Hook]:
        """Start to work on these layers of the family's `part`. Removing the hooks and `disconnect` undo it."""

    def disconnect(self, family: nn.Module) -> None:
        """Undo what `connect` did besides placing hooks."""

    def follow(self, layer: nn.Module) -> None:
        """Take the layer's mode, training or evaluation: `family.train()` does not reach what is no child of it."""
        if self.training != layer.training:
            self.train(layer.training)

    def prepare(self, inputs: PluginInputs, family: nn.Module) -> PluginInputs:
        """The step's inputs as this plugin wants them, e.g. with an image that the family has encoded."""
        return inputs

    def forget(self) -> None:
        """Drop what is remembered of the last call of the model."""

    def delta(self) -> dict[str, Tensor] | None:
        """What to add to its layer's parameters for the same effect, {"weight": ...}; None if that cannot be."""
        return None

    def delta_for(self, layer: nn.Module) -> dict[str, Tensor] | None:
        """`delta` where it depends on what the layer's parameters are without plugins."""
        return self.delta()

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that belong to the plugin, not to a layer that it holds."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("host.")}

    def own_state(self) -> dict[str, Tensor]:
        """The plugin's part of a checkpoint."""
        state = nn.Module.state_dict(self)
        return {name: tensor for name, tensor in state.items() if not name.startswith("host.")}

    def to_file(self) -> tuple[dict[str, Tensor], float]:
        """The tensors for its file, by the names of `own_state`, and what a reader has to multiply its effect with."""
        return self.own_state(), 1.0

    def from_file(self, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        """Inverse of `to_file`: its own state; tensors may be missing."""
        return tensors

    def file_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that build this plugin again for its file."""
        return dict(options)

    @classmethod
    def file_header(cls, plugins: Mapping[str, Plugin]) -> dict[str, str]:
        """What other tools want to find in the header of a file with these plugins, by layer path in the file."""
        return {}

    def rows(self, batch: int) -> slice | None:
        """The rows of a batch of this size that belong to the plugin's branch; None for all.

        Raises:
            ValueError: the run has no such branch, or the batch is not made of the run's branches.
        """
        if self.branch is None:
            return None
        branches = self.inputs.branches
        if self.branch not in branches:
            present = f"has only {', '.join(branches)}" if branches else "has no branches"
            raise ValueError(
                f"{self.where}.branch: {self.branch!r} works in runs with guidance only, and this one {present}; "
                "set a guidance scale, or remove `branch`"
            )
        total = max(part.stop for part in branches.values())
        if batch != total:
            raise ValueError(f"{self.where}.branch: the layer got {batch} rows, but the branches have {total} in all")
        return branches[self.branch]
