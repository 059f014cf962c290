"""LoRA: a low-rank update of a layer's weight (arXiv:2106.09685)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hcpdiff.config.ranges import Range, at_least_1, positive
from hcpdiff.plugins.base import SinglePluginBlock
from hcpdiff.plugins.plugin import Plugin


class LoRA(SinglePluginBlock):
    """output + alpha / rank * B(A(dropout(input))), for linear and convolution layers; B starts at zero.

    The weights are `lora_A.weight` (rank, in, ...) and `lora_B.weight` (out, rank, ...), in float32 whatever the layer
    has, and compute in the type of the layer's input.

    Args:
        rank: the width of the update, or a share of the layer's output width, such as 0.1.
        alpha: how strongly it works; None is `rank`, so that its scale is 1.
        dropout: the probability of zeroing an input of the update. The layer itself sees every input.
        bias: also learn what to add to every output.
        generator: for the first weights of A; None takes torch's default.
    """

    accepts = (nn.Linear, nn.Conv2d)
    adjustable = True
    reads = ()

    def __init__(
        self,
        host: nn.Linear | nn.Conv2d,
        *,
        rank: Annotated[int, at_least_1] | Annotated[float, Range(gt=0, le=1)],
        alpha: Annotated[float, positive] | None = None,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: {dropout} is no probability below 1")
        if alpha is not None and not alpha > 0:
            raise ValueError(f"alpha: {alpha} would change nothing; give a number above 0")
        width = host.out_features if isinstance(host, nn.Linear) else host.out_channels
        self.rank = _rank(rank, width)
        self.alpha = float(self.rank if alpha is None else alpha)
        self.dropout = nn.Dropout(dropout)
        self.lora_A, self.lora_B = _layers(host, self.rank, bias=bias)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)
        if self.lora_B.bias is not None:
            nn.init.zeros_(self.lora_B.bias)

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        # nn.MultiheadAttention reads the weight of its output layer and never calls it.
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            return False
        return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)

    @property
    def scale(self) -> float:
        """What the update is multiplied with, at strength 1."""
        return self.alpha / self.rank

    def forward(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = self.dropout(args[0] if args else kwargs["input"])
        down, up = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        scale = self.scale * self.strength
        if isinstance(self.lora_A, nn.Linear):
            result = _add_linear(output, x, down, up, scale)
        else:
            hidden = self.lora_A._conv_forward(x, down, None) * scale
            result = output + F.conv2d(hidden, up)
        if self.lora_B.bias is None:
            return result
        shape = (-1,) if isinstance(self.lora_A, nn.Linear) else (-1, 1, 1)
        return result + (self.lora_B.bias * scale).to(result.dtype).view(shape)

    def delta(self) -> dict[str, Tensor] | None:
        """The update as one full weight, and bias."""
        if self.branch is not None:
            return None
        scale = self.scale * self.strength
        update = self.lora_B.weight.float().flatten(1) @ self.lora_A.weight.float().flatten(1)
        shape = (len(self.lora_B.weight), *self.lora_A.weight.shape[1:])
        result = {"weight": scale * update.view(shape)}
        if self.lora_B.bias is not None:
            result["bias"] = scale * self.lora_B.bias.float()
        return result

    def to_file(self) -> tuple[dict[str, Tensor], float]:
        # Many readers take alpha to be the rank. A power of two can be multiplied in without losing a bit.
        if math.frexp(self.scale)[0] != 0.5:
            return self.own_state(), self.scale
        return _scaled(self.own_state(), self.scale), 1.0

    def from_file(self, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        return tensors if scale == self.scale else _scaled(tensors, scale / self.scale)

    @classmethod
    def file_header(cls, plugins: Mapping[str, Plugin]) -> dict[str, str]:
        """The ranks and alphas as PEFT's LoraConfig has them, for diffusers."""
        parts: dict[str, dict[str, LoRA]] = {}
        for path, plugin in plugins.items():
            part, _, layer = path.partition(".")
            assert isinstance(plugin, LoRA)
            parts.setdefault(part, {})[layer] = plugin
        configs = {f"{part}.{key}": value for part, loras in parts.items() for key, value in _peft(loras).items()}
        return {"lora_adapter_metadata": json.dumps(configs)}

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}"


def _peft(loras: Mapping[str, LoRA]) -> dict[str, Any]:
    """The fields of a LoraConfig; `^` makes a pattern mean this very layer."""
    first = next(iter(loras.values()))
    return {
        "r": first.rank,
        "lora_alpha": first.rank * first.to_file()[1],
        "rank_pattern": {f"^{path}": lora.rank for path, lora in loras.items()},
        "alpha_pattern": {f"^{path}": lora.rank * lora.to_file()[1] for path, lora in loras.items()},
        "target_modules": list(loras),
        "lora_bias": any(lora.lora_B.bias is not None for lora in loras.values()),
    }


def _scaled(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    return {key: tensor * scale if key.startswith("lora_B.") else tensor for key, tensor in state.items()}


def _add_linear(output: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """output + scale * x down^T up^T, in two products: the scale costs `rank` numbers a token, the sum no pass."""
    hidden = (F.linear(x, down) * scale).to(output.dtype)
    rows, hidden_rows = output.reshape(-1, output.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    return torch.addmm(rows, hidden_rows, up.to(output.dtype).t()).view(output.shape)


def _layers(
    host: nn.Linear | nn.Conv2d, rank: int, *, bias: bool
) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.Conv2d]:
    if isinstance(host, nn.Linear):
        return nn.Linear(host.in_features, rank, bias=False), nn.Linear(rank, host.out_features, bias=bias)
    geometry = {k: getattr(host, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return nn.Conv2d(host.in_channels, rank, bias=False, **geometry), nn.Conv2d(rank, host.out_channels, 1, bias=bias)


def _rank(rank: int | float, width: int) -> int:
    if isinstance(rank, float) and 0 < rank <= 1:
        return max(round(width * rank), 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"rank: {rank!r} is no rank; give a whole number from 1, or a share of the output width up to 1.0"
        )
    return rank
