"""Progress bars for what takes longer than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_DELAY = 1.0  # seconds, before a bar is shown


@contextmanager
def bar(title: str, unit: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar as a function of (done, total). It does not exist before it is shown: lines of a log would draw it."""
    started = time.monotonic()
    shown: list[tqdm] = []

    def show(done: int, total: int) -> None:
        if not shown and not quiet and time.monotonic() - started > _DELAY:
            shown.append(tqdm(desc=title, unit=unit, leave=False, dynamic_ncols=True))
        for one in shown:
            one.total = total
            one.update(done - one.n)

    try:
        yield show
    finally:
        for one in shown:
            one.close()
