"""Reading captions: a text file beside each image, or one file for all of them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CaptionReader = Callable[[str], Sequence[str]]  # name of an image -> its captions, of which one is drawn each time
CaptionOption = str | Path | Mapping[str, str | Sequence[str]] | CaptionReader | None  # see `FolderSource.captions`


def caption_reader(option: CaptionOption, images: Path, names: Sequence[str]) -> CaptionReader:
    """What reads the captions of a folder's images.

    Args:
        option: see `FolderSource.captions`.
        images: the folder of the images.
        names: their relative paths, which a table's names are matched with.
    """
    if isinstance(option, Mapping):
        return TableCaptions(option, names, "captions")
    if not isinstance(option, (str, Path, type(None))):
        return option
    path = images if option is None else Path(option).expanduser()
    if path.is_file():
        return _read_json(path, names)
    if not path.is_dir():
        raise FileNotFoundError(f"captions: nothing at {option}; give a folder of .txt files or a .json file")
    tables = sorted(path.glob("*.json"))
    if path / "captions.json" in tables:
        return _read_json(path / "captions.json", names)
    return _read_json(tables[0], names) if len(tables) == 1 else SidecarCaptions(path)


class SidecarCaptions:
    """`<image name without suffix>.txt` at the same place below `folder`; the whole file is one caption."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, list[str]] = {}

    def __call__(self, name: str) -> list[str]:
        if name not in self._read:
            path = self.folder / Path(name).with_suffix(".txt")
            self._read[name] = [_read_text(path).strip()] if path.is_file() else []
        return self._read[name]


class TableCaptions:
    """{name: caption or list of captions}; names with or without suffix, with or without their subfolder.

    Raises:
        ValueError: an entry is no caption, or no name is that of an image.
    """

    def __init__(self, table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
        self._captions = {_normal(name): _captions_of(entry, f"{where}: {name!r}") for name, entry in table.items()}
        unmatched = self._captions.keys() - {form for name in names for form in _forms(name)}
        if table and len(unmatched) == len(self._captions):
            raise ValueError(
                f"{where}: none of its names, e.g. {next(iter(table))!r}, is that of an image, e.g. {names[0]!r}"
            )
        self.unmatched = sorted(unmatched)

    def __call__(self, name: str) -> list[str]:
        return next((self._captions[form] for form in _forms(name) if form in self._captions), [])


def stem(name: str) -> str:
    """A relative path without its last suffix, in one form of unicode, so that equal-looking names are equal."""
    head, slash, tail = _normal(name).rpartition("/")
    return head + slash + (tail.rpartition(".")[0] or tail)


def _forms(name: str) -> list[str]:
    """The ways a table may name an image, the most precise first."""
    forms = [_normal(name), stem(name)]
    return forms + [form.rpartition("/")[2] for form in forms]


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _captions_of(entry: Any, where: str) -> list[str]:
    captions = [] if entry is None else [entry] if isinstance(entry, str) else entry
    if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: {entry!r} is no caption; use a text or a list of texts")
    return [caption.strip() for caption in captions]


def _read_json(path: Path, names: Sequence[str]) -> TableCaptions:
    try:
        table = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"captions: {path} is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"captions: {path} should hold {{image name: caption}}, not a {type(table).__name__}")
    return TableCaptions(table, names, f"captions: {path}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"captions: {path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
