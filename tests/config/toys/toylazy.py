"""Types that are imported for type checkers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import toybox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import nowhere


class Late:
    def __init__(
        self,
        call: Callable[[nowhere.Tensor, int], nowhere.Tensor] | None = None,
        names: Sequence[str] = (),
        folder: Path | None = None,
        mode: Literal[nowhere.A, nowhere.B] | None = None,
        anything: nowhere.Deep[int] | str = "",
    ) -> None:
        self.call, self.names, self.folder, self.mode = call, names, folder, mode


class Heir(toybox.Ema):
    """A subclass in another module: its arguments are written with the names of that one."""
