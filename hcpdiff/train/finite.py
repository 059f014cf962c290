"""A run stops at a loss that is no number, before it can spoil the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The loss is not a number; the message names the samples."""


class FiniteCheck:
    """Looks at losses when the device has them, without making it wait: backward is already queued behind them.

    Args:
        per_sample: (B,).
        dataset, keys: where the samples are from, and their names.
    """

    def __init__(self, per_sample: Tensor, dataset: str, keys: Sequence[str]) -> None:
        self.dataset, self.keys = dataset, keys
        self.finite = torch.isfinite(per_sample.detach()).to("cpu", non_blocking=True)
        self.event = torch.cuda.Event() if per_sample.is_cuda else None
        if self.event is not None:
            self.event.record()

    def require(self, step: int) -> None:
        """Raise if a loss of optimizer step `step` is not finite.

        Raises:
            NonFiniteLossError: naming the samples.
        """
        if self.event is not None:
            self.event.synchronize()
        if not bool(self.finite.all()):
            names = ", ".join(key for key, finite in zip(self.keys, self.finite.tolist(), strict=True) if not finite)
            raise NonFiniteLossError(
                f"step {step}: the loss of data.{self.dataset} is not finite for {names}; nothing was changed by this "
                "step. Look at these files; if they are fine, lower the learning rate or use precision bf16 or fp32"
            )


def check_weights(parameters: Mapping[str, Tensor], step: int) -> None:
    """Raise if a trained weight is not finite, as after a gradient that was not: such a checkpoint is of no use.

    Raises:
        NonFiniteLossError: naming the first of them.
    """
    finite = torch.stack([torch.isfinite(p.detach()).all() for p in parameters.values()]).tolist()
    broken = [name for name, good in zip(parameters, finite, strict=True) if not good]
    if broken:
        raise NonFiniteLossError(
            f"step {step}: {len(broken)} of {len(parameters)} trained weights are not finite, such as {broken[0]}; no "
            "checkpoint is written. Go on from the last one with a lower learning rate, or train.max_grad_norm: 1.0"
        )
