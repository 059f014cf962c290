"""Filling a table: what it lacks, shared out among the processes of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TypeVar

from hcpdiff.data.cache.table import Table
from hcpdiff.data.cache.team import Team

Part = TypeVar("Part", bound=Sized)
ShowProgress = Callable[[int, int], None]  # (done, total)

_SHIFT = 30.0  # seconds between two meetings of the processes: none waits for another much longer than that


def fill(
    table: Table,
    missing: Callable[[], Sequence[Part]],
    work: Callable[[Sequence[Part]], Iterator[int]],
    *,
    team: Team,
    progress: ShowProgress | None = None,
) -> None:
    """Add to a table what it lacks; when this returns, every process of the team can read all of it.

    Args:
        missing: what the table lacks, in parts to be done at once.
        work: computes these parts, adds them, and gives how many rows it has done after each.
        progress: called with how many rows of this process's share are done, and how many they are.
    """
    for rank, world_size in team.rounds():
        table.refresh()
        mine = missing()[rank::world_size]
        total = sum(map(len, mine))
        if not team.most(total):  # all have looked before anybody adds, so that the shares fit together
            continue
        left = _Work(work(mine), total, progress)
        while True:
            try:
                left.until(time.monotonic() + _SHIFT)
            except BaseException:  # an interrupt too: what is done stays done
                table.flush()
                raise
            if not left.total:
                table.flush()
            if not team.most(left.total):
                break
    table.refresh()
    table.flush()


class _Work:
    """Work that can be done a while, and gone on with later."""

    def __init__(self, steps: Iterator[int], total: int, progress: ShowProgress | None) -> None:
        self.steps, self.total, self.all, self.progress = steps, total, total, progress

    def until(self, end: float) -> None:
        """Work until `end`, or until all is done."""
        for done in self.steps:
            if self.progress is not None:
                self.progress(done, self.all)
            if time.monotonic() >= end:
                self.total = max(1, self.all - done)
                return
        self.total = 0
