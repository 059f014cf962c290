"""What a type alone cannot say of a setting: its range, and that a path must exist.

    def dataset(folder: Annotated[str, ExistingPath()], *, batch_size: Annotated[int, Range(ge=1)] = 1): ...

Only `hcpdiff check` reads these marks; they change nothing at run time. This module imports nothing of hcpdiff.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """A number between bounds, or a list, tuple, dict or text whose length is."""

    ge: float | None = None  # at least
    gt: float | None = None  # more than
    le: float | None = None  # at most
    lt: float | None = None  # less than

    def complaint(self, value: Any) -> str | None:
        """What is wrong with this value and what would be right; None if nothing is."""
        sized = isinstance(value, Sized)
        number = len(value) if sized else value
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            return None
        if not math.isnan(number) and self.contains(number):
            return None
        shown = f"a length of {number}" if sized else repr(number)
        return f"{shown} is out of range; use {self}"

    def contains(self, number: float) -> bool:
        """Whether the number lies within the bounds."""
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None and self.gt is None and self.lt is None:
            return f"{self.ge} to {self.le}"
        bounds = [
            None if self.ge is None else f"{self.ge} or more",
            None if self.gt is None else f"more than {self.gt}",
            None if self.le is None else f"{self.le} or less",
            None if self.lt is None else f"less than {self.lt}",
        ]
        return " and ".join(bound for bound in bounds if bound)


@dataclass(frozen=True)
class ExistingPath:
    """A file or folder that must be there before the run starts."""

    kind: str = ""  # "file", "folder" or "" for either


at_least_0 = Range(ge=0)
at_least_1 = Range(ge=1)
positive = Range(gt=0)
fraction = Range(ge=0, le=1)
