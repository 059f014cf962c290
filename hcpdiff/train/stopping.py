"""SIGINT and SIGTERM let a run finish its step and save."""

from __future__ import annotations

import signal

import torch
from accelerate import Accelerator


class StopSignals:
    """Inside `with`, a signal to stop is noted; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        try:
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where signals never arrive
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, accelerator: Accelerator, *, agree: bool) -> bool:
        """Whether to stop now. Several processes must `agree`, at a step that is the same for all of them."""
        if accelerator.num_processes == 1:
            return self.received is not None
        if not agree:
            return False
        noted = torch.tensor(float(self.received is not None), device=accelerator.device)
        total = accelerator.reduce(noted, reduction="sum")
        assert isinstance(total, torch.Tensor)
        return total.item() > 0

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler)
