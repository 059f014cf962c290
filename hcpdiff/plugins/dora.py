"""DoRA: a LoRA of the direction of each row of a weight, and a magnitude for it (arXiv:2402.09353)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcpdiff.config.ranges import Range, at_least_1, positive
from hcpdiff.formats import dora
from hcpdiff.formats.lora_files import Update
from hcpdiff.plugins.lora import LoRA
from hcpdiff.plugins.weight_change import difference, run


class DoRA(LoRA):
    """magnitude * V / |V| as the weight, where V is the weight with a LoRA and |V| the length of each of its rows.

    The magnitudes start as the lengths of the weight's rows, so that nothing changes at first. For gradients |V| is a
    constant, as in the paper. It costs one more product of the layer's size than a LoRA.

    ComfyUI divides by the rows of the weight without the LoRA; with `on_input` it does the same as here.

    Args:
        rank: the width of the update, or a share of the layer's output width, such as 0.1.
        alpha: how strongly it works; None is `rank`, so that its scale is 1.
        dropout: the probability of zeroing an input of the update. The layer itself sees every input.
        on_input: magnitudes for the columns, one for each input, instead of the rows; not for diffusers or PEFT.
        generator: for the first weights of A; None takes torch's default.
    """

    def __init__(
        self,
        host: nn.Linear | nn.Conv2d,
        *,
        rank: Annotated[int, at_least_1] | Annotated[float, Range(gt=0, le=1)],
        alpha: Annotated[float, positive] | None = None,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        on_input: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(host, rank=rank, alpha=alpha, dropout=dropout, generator=generator)
        self.lora_magnitude_vector = nn.Parameter(dora.norms(host.weight.detach(), on_input=on_input))
        self.on_input = on_input

    def change(self) -> dora.DoRA:
        """What it does, with its tensors as they are now."""
        alpha = None if self.alpha == self.rank else self.alpha
        return dora.DoRA(Update(self.lora_A.weight, self.lora_B.weight, alpha), self.lora_magnitude_vector)

    def forward(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        assert isinstance(host, (nn.Linear, nn.Conv2d))
        x = args[0] if args else kwargs["input"]
        change, weight = self.change(), host.weight.detach()
        with torch.no_grad():
            whole = change.of.applied(weight)
        factors = change.factors(whole).flatten()
        if isinstance(host, nn.Conv2d):
            factors = factors.view(-1, 1, 1)
        more, factors = (factors - 1).to(x.dtype), factors.to(x.dtype)  # near 1, bfloat16 knows steps of 1/128 alone
        if self.on_input:
            changed = run(host, x * more, weight) + self._update(x * factors)
        else:
            changed = run(host, x, weight) * more + self._update(x) * factors
        return output + (self.strength * changed).to(output.dtype)

    def _update(self, x: Tensor) -> Tensor:
        """What the LoRA alone adds."""
        x = self.dropout(x)
        down, up = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        if isinstance(self.lora_A, nn.Linear):
            return F.linear(F.linear(x, down) * self.scale, up)
        return F.conv2d(self.lora_A._conv_forward(x, down, None) * self.scale, up)

    def delta(self) -> None:
        return None  # it depends on the weight

    def delta_for(self, layer: nn.Module) -> dict[str, Tensor] | None:
        return None if self.branch is not None else difference(self.change(), layer, self.strength)

    def from_file(self, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        found, own = super().from_file(tensors, scale), self.lora_magnitude_vector
        magnitude = found.get("lora_magnitude_vector")
        if magnitude is not None and magnitude.numel() == own.numel():  # dimensions of size 1 are missing in some files
            found["lora_magnitude_vector"] = magnitude.view_as(own)
        return found

    @classmethod
    def file_header(cls, plugins: Any) -> dict[str, str]:
        return {}
