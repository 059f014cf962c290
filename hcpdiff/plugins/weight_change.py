"""A plugin that computes with another weight of its layer: what LoHa, LoKr, OFT and the like are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hcpdiff.formats.changes import Additive, AnyChange, mapped
from hcpdiff.formats.dora import norms
from hcpdiff.formats.lora_files import Update
from hcpdiff.formats.lycoris import Full
from hcpdiff.formats.modules import build
from hcpdiff.plugins.base import SinglePluginBlock

Difference = dict[str, Tensor]  # {"weight": ..., "bias": ...}, of those that a layer has


# The tensors, one of each product, that a change of weight is proportional to.
_PROPORTIONAL = ("lora_up_weight", "lora_up_bias", "hada_w1_a", "lokr_w1", "lokr_w1_a", "a1_weight", "b1_weight")


class WeightChange(SinglePluginBlock):
    """What a file of LyCORIS' forms does to a layer: output + layer(input) with the difference as its weight.

    It works on linear, convolution, embedding and norm layers. While it is frozen, the difference is computed once for
    each strength and kept, in the layer's type and with the size of its weight; a step then costs one more product of
    this size. To spend neither memory nor time, add it to the model for good: `hcpdiff.plugins.weights.merge`. While it
    learns, and in a compiled model, the difference is computed at every step; backward needs it, so gradient
    checkpointing saves its memory.

    Args:
        shapes: {name of a tensor in LyCORIS' files: its shape}; the names say which form it is.
        alpha: of the form; None is its rank, for OFT no constraint.
        on_input: of an IA3: whether it works on columns.
        pieces: of a LoKr: the rows [start, stop] that belong to this layer, where it is a part of a fused one.
        dtype: of the tensors, such as float16; None is float32.
    """

    accepts = (nn.Linear, nn.Conv2d, nn.Embedding, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    adjustable = True
    reads = ()

    def __init__(
        self,
        host: nn.Module,
        *,
        shapes: Mapping[str, Sequence[int]],
        alpha: float | None = None,
        on_input: bool = False,
        pieces: Sequence[Sequence[int]] = (),
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        settings = {"alpha": alpha, "on_input": on_input, "pieces": tuple((a, b) for a, b in pieces)}
        self.settings = {name: value for name, value in settings.items() if value not in (None, False, ())}
        self.names = {name.replace(".", "_"): name for name in shapes}
        for own, name in self.names.items():
            tensor = torch.zeros(tuple(shapes[name]), dtype=getattr(torch, dtype or "float32"))
            self.register_parameter(own, nn.Parameter(tensor))
        self._start(host)
        self._kept: tuple[tuple[Any, ...], Difference] | None = None
        check_fits(self.change(), host)

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        # nn.MultiheadAttention reads the weight of its output layer and never calls it.
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            return False
        return isinstance(layer, cls.accepts) and isinstance(layer.weight, Tensor)

    @torch.no_grad()
    def _start(self, host: nn.Module) -> None:
        """Tensors that change nothing where all others are zeros."""
        if "rescale" in self.names:
            self.get_parameter("rescale").fill_(1)
        if "dora_scale" in self.names:
            scale, weight = self.get_parameter("dora_scale"), host.get_parameter("weight")
            scale.copy_(norms(weight, on_input=len(scale) == 1 and scale.numel() > 1).view(scale.shape))

    def change(self) -> AnyChange:
        """What it does, with its tensors as they are now."""
        return build({name: self.get_parameter(own) for own, name in self.names.items()}, **self.settings)

    def forward(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if self.strength == 0:
            return output
        x = args[0] if args else kwargs["input"]
        return output + run(host, x, **self._difference(host)).to(output.dtype)

    def delta_for(self, layer: nn.Module) -> Difference | None:
        return None if self.branch is not None else difference(self.change(), layer, self.strength)

    @property
    def scale(self) -> float:
        """alpha / rank, where the form has these."""
        return self.change().scale

    def to_file(self) -> tuple[dict[str, Tensor], float]:
        return self.own_state(), self.scale

    def from_file(self, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        if scale == self.scale:
            return tensors
        return {name: t * (scale / self.scale) if name in _PROPORTIONAL else t for name, t in tensors.items()}

    def _difference(self, host: nn.Module) -> Difference:
        weight = host.get_parameter("weight")
        if torch.compiler.is_compiling() or any(p.requires_grad for p in self.parameters()):
            self._kept = None
            return _like(difference(self.change(), host, self.strength), weight)
        key = (self.strength, weight.dtype, weight.device, weight.data_ptr(), weight._version)
        key += tuple(p._version for p in self.parameters())
        if self._kept is None or self._kept[0] != key:
            self._kept = key, _like(difference(self.change(), host, self.strength), weight)
        return self._kept[1]


def difference(change: AnyChange, layer: nn.Module, strength: float) -> Difference:
    """What a change adds to a layer's weight and bias, in float32."""
    weight, found = layer.get_parameter("weight").detach(), {}
    if isinstance(change, (Additive, Update)):
        if not (isinstance(change, Full) and change.diff is None):
            found["weight"] = strength * change.delta().view(weight.shape)
    else:
        found["weight"] = change.applied(weight, strength) - weight.float()
    if (bias := change.applied_bias(None, strength)) is not None:
        found["bias"] = bias
    return found


def check_fits(change: AnyChange, layer: nn.Module) -> None:
    """Raise ValueError for a change of other shapes than a layer's weight and bias."""
    weight = layer.get_parameter("weight")
    try:
        bias = mapped(change, _nowhere).applied_bias(None)
        fits = mapped(change, _nowhere).applied(_nowhere(weight)).shape == weight.shape
    except RuntimeError:
        fits, bias = False, None
    if not fits or (bias is not None and len(bias) != _outputs(weight, layer)):
        raise ValueError(f"{type(change).__name__} does not fit a weight of {list(weight.shape)}")


def _outputs(weight: Tensor, layer: nn.Module) -> int:
    return 0 if isinstance(layer, nn.Embedding) else len(weight)


def _nowhere(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _like(found: Difference, weight: Tensor) -> Difference:
    return {name: tensor.to(weight) for name, tensor in found.items()}


def run(layer: nn.Module, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """What a layer with this weight and bias gives; layers are linear in both, so differences give a difference."""
    if weight is None:
        assert bias is not None
        return bias.view(-1, *[1] * (x.ndim - 2)) if isinstance(layer, (nn.Conv2d, nn.GroupNorm)) else bias
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, bias)
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    assert isinstance(layer, nn.RMSNorm)
    return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)
