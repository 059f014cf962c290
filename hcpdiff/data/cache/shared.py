"""A table of a run: on disk, in memory, or in the memory that the processes of a machine share."""

from __future__ import annotations

import getpass
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hcpdiff.data.cache.table import Table
from hcpdiff.data.cache.team import Team


def shared_table(folder: Path | None, about: str, team: Team) -> tuple[Table, Callable[[], None]]:
    """A table that a team fills together, and what to call once it is filled.

    Args:
        folder: where it lies; None: in memory. Of several processes, those of a machine then have one copy between
            them: files of the temporary folder, which are removed as soon as all processes have mapped them.
        about: what its rows are made by, in words.
    """
    if folder is not None or team.world_size == 1:
        return Table(folder, about=about), _nothing
    token = team.most(secrets.randbits(62) if team.rank == 0 else 0)
    path = Path(tempfile.gettempdir()) / f"hcpdiff-{getpass.getuser()}-{token:016x}"
    table = Table(path, about=about, durable=False)

    def settle() -> None:
        table.map_all()
        team.most(0)  # all have mapped it
        if team.local_rank == 0:
            shutil.rmtree(path, ignore_errors=True)

    return table, settle


def _nothing() -> None:
    """A folder of the user's stays."""
