"""Learning-rate schedules as plain functions; any class of torch.optim.lr_scheduler works too.

All count optimizer steps and multiply the learning rate of every parameter group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hcpdiff.config.ranges import Range

Count = Annotated[int, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]


def constant(optimizer: Optimizer, *, warmup: Count = 0) -> LambdaLR:
    """The full rate after a linear warm-up."""
    return _schedule(optimizer, warmup, lambda step: 1.0)


def linear(optimizer: Optimizer, *, steps: Count, warmup: Count = 0, final: Share = 0.0) -> LambdaLR:
    """A straight line from 1 after the warm-up to `final` at `steps`."""
    return _schedule(optimizer, warmup, lambda step: 1 + (final - 1) * _progress(step, warmup, steps))


def cosine(optimizer: Optimizer, *, steps: Count, warmup: Count = 0, final: Share = 0.0) -> LambdaLR:
    """Half a cosine from 1 after the warm-up to `final` at `steps` (arXiv:1608.03983, without restarts)."""

    def factor(step: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * _progress(step, warmup, steps))) / 2

    return _schedule(optimizer, warmup, factor)


def warmup_stable_decay(
    optimizer: Optimizer, *, steps: Count, warmup: Count = 0, decay: Count = 0, final: Share = 0.0
) -> LambdaLR:
    """Warm-up, the full rate, and a `decay` of that many last steps to `final`, by 1 - sqrt (arXiv:2405.18392)."""
    return _schedule(
        optimizer, warmup, lambda step: 1 + (final - 1) * math.sqrt(_progress(step, max(steps - decay, 0), steps))
    )


def state_of(schedule: LRScheduler | None) -> dict[str, Any] | None:
    """A schedule's state without the functions of a LambdaLR, which the config gives again."""
    if schedule is None:
        return None
    state = schedule.state_dict()
    return state | {"lr_lambdas": [None] * len(state["lr_lambdas"])} if "lr_lambdas" in state else state


def restore(schedule: LRScheduler, state: dict[str, Any]) -> None:
    """Go on from a state; the rates are those that the config gives for that step, if it is now a longer run's."""
    schedule.load_state_dict(state)
    if isinstance(schedule, LambdaLR):
        rates = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


def _progress(step: int, start: int, end: int) -> float:
    """0 up to `start`, 1 from `end` on."""
    return min(max((step - start) / max(end - start, 1), 0.0), 1.0)


def _schedule(optimizer: Optimizer, warmup: int, factor: Callable[[int], float]) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: factor(step) * (min(1.0, (step + 1) / warmup) if warmup else 1.0))
