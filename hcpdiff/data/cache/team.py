"""The processes that fill a cache together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


def _own(number: int) -> int:
    return number


@dataclass(frozen=True)
class Team:
    """Processes that train together, of which this is one.

    Args:
        rank: number of this process.
        world_size: how many there are.
        local_rank: its number on its machine.
        local_world_size: how many there are on its machine.
        most: called by all processes with a number each; waits for all, and gives each the largest.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    most: Callable[[int], int] = _own

    def rounds(self) -> Iterator[tuple[int, int]]:
        """(which share, of how many) this process does in turn of what is still missing.

        All together; then those of a machine, which may not see the disks of others; then each what it cannot get
        otherwise.
        """
        yield self.rank, self.world_size
        if 1 < self.local_world_size < self.world_size:
            yield self.local_rank, self.local_world_size
        if self.world_size > 1:
            yield 0, 1


ALONE = Team()
