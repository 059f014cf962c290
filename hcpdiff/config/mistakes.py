"""A mistake in a config, and where it was made."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Key = tuple["str | int", ...]  # ("plugins", "style", "layers", 1)


@dataclass(frozen=True)
class Origin:
    """The place that set a value last: a line of a file, or the command line."""

    file: Path | None  # None: an override such as `train.steps=10`
    line: int = 0
    column: int = 0  # 0: not worth telling

    def __str__(self) -> str:
        if self.file is None:
            return "override"
        numbers = "".join(f":{n}" for n in (self.line, self.column) if n)
        return shown_path(self.file) + numbers


@dataclass(frozen=True)
class Mistake:
    """One mistake of the user, as `file:line: key: what is wrong; what would be right`."""

    key: str
    text: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.origin, self.key, self.text) if part)


class ConfigError(ValueError):
    """The config cannot be used; its text has one line per mistake."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def shown(key: Key) -> str:
    """A key as users write it: `plugins.style.layers[1]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def shown_path(path: Path) -> str:
    """Relative to the current folder if it lies inside, else absolute."""
    relative = os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
    return Path(relative).as_posix()


def hint(wrong: object, names: Iterable[object], otherwise: str = "") -> str:
    """`; did you mean 'steps'?` if a name is close to the wrong one, else `otherwise`."""
    near = nearest(str(wrong), [str(name) for name in names])
    return f"; did you mean {near[0]!r}?" if near else otherwise


def nearest(wrong: str, names: Sequence[str], n: int = 1) -> list[str]:
    """Up to n names close to a wrong one, the closest first."""
    return difflib.get_close_matches(wrong, names, n, cutoff=0.6)


def similarity(a: str, b: str) -> float:
    """0 to 1; above 0.85 is a typo of one or two letters."""
    return difflib.SequenceMatcher(None, a, b).ratio()


def parsed(text: str) -> Key:
    """The inverse of `shown`, for keys whose names have no dots or brackets."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", text) if part)


def split(text: str, key: Key) -> tuple[Key, str]:
    """A text such as `model.path: no such file`, said of that key, as the key and the rest.

    The text may go further than the key, e.g. `plugins.style.layers[1]: ...` for `plugins.style`.
    """
    text = " ".join(text.split())
    if rest := re.fullmatch(rf"{re.escape(shown(key))}((?:\.\w+|\[\d+\])*): (.*)", text):
        return (*key, *parsed(rest[1])), rest[2]
    return key, text.removeprefix(f"{shown(key)}: ")
