"""One file, or one mapping, with the captions of all images."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from hcpdiff.config.ranges import ExistingPath
from hcpdiff.data.captions.names import forms, normal
from hcpdiff.data.captions.table_files import read_table

CaptionEntry = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None


class TableCaptions:
    """{name: caption}; names with or without suffix, with or without their subfolder.

    Instead of a caption there may be a list of them, of which one is drawn each time, and instead of a text in it
    {text: a text, weight: 2}, which is drawn twice as often as one of weight 1.

    Args:
        captions: a .json or .yaml file with the table, or the table.

    Raises:
        ValueError: an entry is no caption; in `bind`: no name is that of an image.
    """

    def __init__(self, captions: Annotated[str | Path, ExistingPath("file")] | Mapping[str, CaptionEntry]) -> None:
        table, self._where = _table(captions)
        self._captions: dict[str, tuple[str, ...]] = {}
        self._weights: dict[str, tuple[float, ...]] = {}
        for name, entry in table.items():
            self._add(name, entry)
        self.unmatched: list[str] = []  # names in the table that are those of no image; known once bound

    def bind(self, images: Path, names: Sequence[str]) -> TableCaptions:
        """Itself, if it has a caption of one of these images."""
        unmatched = dict.fromkeys(self._captions)
        for name in names:
            for form in forms(name):
                unmatched.pop(form, None)
        if self._captions and len(unmatched) == len(self._captions):
            raise ValueError(
                f"{self._where}: none of its names, e.g. {next(iter(self._captions))!r}, is that of an image"
                + (f", e.g. {names[0]!r}" if len(names) else "")
                + "; for .txt files beside the images write captions: {_target_: hcpdiff.data.SidecarCaptions}"
            )
        self.unmatched = sorted(unmatched)
        return self

    def __call__(self, name: str) -> list[str]:
        return list(self._captions.get(self._form(name), ()))

    def weights(self, name: str) -> Sequence[float] | None:
        """How often each caption of an image is drawn; None: all equally often."""
        return self._weights.get(self._form(name))

    def _form(self, name: str) -> str:
        return next((form for form in forms(name) if form in self._captions), "")

    def _add(self, name: Any, entry: Any) -> None:
        where = f"{self._where}: {name!r}"
        if not isinstance(name, str):
            raise ValueError(f"{where} is no name of an image; write it in quotes")
        if normal(name) in self._captions:
            raise ValueError(f"{where} is there twice; leave one of the two out")
        choices = [] if entry is None else [entry] if isinstance(entry, (str, Mapping)) else entry
        if not isinstance(choices, Sequence):
            raise ValueError(f"{where}: {reprlib.repr(entry)} is no caption; use a text or a list of texts")
        pairs = [_weighted(choice, where) for choice in choices]
        self._captions[normal(name)] = tuple(text for text, _ in pairs)
        if len({weight for _, weight in pairs}) > 1:
            self._weights[normal(name)] = tuple(weight for _, weight in pairs)


def _weighted(choice: Any, where: str) -> tuple[str, float]:
    """(text, weight) of a text, or of {text: ..., weight: ...}."""
    weight: Any = 1.0
    if isinstance(choice, Mapping):
        unknown = sorted(map(str, choice.keys() - {"text", "caption", "weight"}))
        if unknown or ("text" in choice) == ("caption" in choice):
            wrong = f"{unknown[0]!r} is unknown" if unknown else "there should be one text"
            raise ValueError(f"{where}: {wrong}; write {{text: a caption, weight: 2}}")
        weight = choice.get("weight", 1.0)
        choice = choice["text"] if "text" in choice else choice["caption"]
    if not isinstance(choice, str):
        raise ValueError(f"{where}: {reprlib.repr(choice)} is no caption; use a text or a list of texts")
    try:
        choice.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} is half of one, {choice[error.start]!a}; mend it"
        ) from error
    return choice.strip(), _weight(weight, where)


def _weight(value: Any, where: str) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not (0 < weight < math.inf):
        raise ValueError(f"{where}: {reprlib.repr(value)} is no weight; use a number above 0")
    return weight


def _table(captions: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The table, and what errors call it."""
    if isinstance(captions, Mapping):
        return captions, "captions"
    path = Path(captions).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"captions: no file at {captions}; give a .json or .yaml file")
    return read_table(path, "captions"), f"captions: {path}"
