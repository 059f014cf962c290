"""LoHa and LoKr to train: updates of a high rank from few numbers (arXiv:2108.06098, arXiv:2309.14859)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import nn

from hcpdiff.config.ranges import at_least_1, positive
from hcpdiff.plugins.weight_change import WeightChange

Layer = nn.Linear | nn.Conv2d


class LoHa(WeightChange):
    """alpha / rank * (w1_a w1_b) * (w2_a w2_b) is added to the weight, element by element; w2_a starts at zero.

    Its rank can be the square of `rank`, with twice the numbers of a LoRA.

    Args:
        rank: the width of each of the two products.
        alpha: how strongly it works; None is `rank`, so that its scale is 1.
        tucker: for the spatial part of a convolution a small tensor of its own, so that there are fewer numbers.
        generator: for the first weights; None takes torch's default.
    """

    accepts = (nn.Linear, nn.Conv2d)

    def __init__(
        self,
        host: Layer,
        *,
        rank: Annotated[int, at_least_1],
        alpha: Annotated[float, positive] | None = None,
        tucker: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        rows, columns, *kernel = host.weight.shape
        small = tucker and math.prod(kernel) > 1
        a = [rank, rows] if small else [rows, rank]
        b = [rank, columns if small else columns * math.prod(kernel)]
        shapes = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
        shapes |= {name: [rank, rank, *kernel] for name in ("hada_t1", "hada_t2")} if small else {}
        super().__init__(host, shapes=shapes, alpha=alpha)
        for name, tensor in self.named_parameters():
            if name != "hada_w2_a":
                nn.init.normal_(tensor, std=1.0 if name.endswith("_b") else 0.1, generator=generator)


class LoKr(WeightChange):
    """alpha / rank * the Kronecker product of a small matrix w1 and w2, which starts at zero, is added to the weight.

    Args:
        rank: of w2, which then is a product of two matrices; None, or where that would be no fewer numbers: it is
            whole, and the scale is 1.
        alpha: how strongly it works; None is `rank`, so that its scale is 1.
        factor: the most rows and columns of w1, which has as many as divide those of the weight; None is near their
            square root. A larger one makes w2 smaller.
        generator: for the first weights; None takes torch's default.
    """

    accepts = (nn.Linear, nn.Conv2d)

    def __init__(
        self,
        host: Layer,
        *,
        rank: Annotated[int, at_least_1] | None,
        alpha: Annotated[float, positive] | None = None,
        factor: Annotated[int, at_least_1] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        rows, columns, *kernel = host.weight.shape
        a, c = divisor(rows, factor), divisor(columns, factor)
        b, d = rows // a, columns // c
        wide = d * math.prod(kernel)
        if rank is None and alpha is not None:
            raise ValueError("alpha: it would do nothing without a rank; remove it")
        if rank is None or rank * (b + wide) >= b * wide:
            shapes, alpha = {"lokr_w2": [b, d, *kernel]}, None
        else:
            shapes = {"lokr_w2_a": [b, rank], "lokr_w2_b": [rank, wide]}
        super().__init__(host, shapes={"lokr_w1": [a, c], **shapes}, alpha=alpha)
        for name, tensor in self.named_parameters():
            if name in ("lokr_w1", "lokr_w2_a"):
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)


def divisor(size: int, most: int | None) -> int:
    """The largest divisor of a size up to `most`, and up to its square root."""
    limit = min(math.isqrt(size), most or size)
    return max(n for n in range(1, limit + 1) if size % n == 0)
