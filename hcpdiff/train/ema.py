"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hcpdiff.train.settings import EmaSettings


class EMA:
    """A shadow of the trained weights, in fp32 (in bf16 a decay of 0.999 would never move)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: EmaSettings) -> None:
        self.parameters, self.settings = dict(parameters), settings
        self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after optimizer step `step` (the first is 1)."""
        decay = self.settings.decay
        if self.settings.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        live = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Go on from the `shadow` of another EMA of these weights."""
        for name, value in shadow.items():
            self.shadow[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside this block, and its own again after it, bit for bit."""
        backup = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(backup)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])
