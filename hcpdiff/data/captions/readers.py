"""What a user writes for `captions`, as a reader of a folder's captions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hcpdiff.data.captions.sidecars import CaptionReader, SidecarCaptions, weights_of
from hcpdiff.data.captions.table_files import YAML_SUFFIXES
from hcpdiff.data.captions.tables import CaptionEntry, TableCaptions

CaptionOption = str | Path | Mapping[str, CaptionEntry] | CaptionReader | None  # see `FolderSource.captions`


def caption_reader(option: CaptionOption, images: Path, names: Sequence[str]) -> CaptionReader:
    """What reads the captions of a folder's images.

    Args:
        option: None: what lies in the folder of the images: `captions.json`, or an only .json file; else
            `captions.yaml`, or an only .yaml file; else .txt files. A path: the same in another folder, or a .json or
            .yaml file. A mapping: see `TableCaptions`. A reader: that one, bound to these images if it has `bind`.
        images: the folder of the images.
        names: their relative paths, which a table's names are matched with.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: a table is broken, or names none of the images.
    """
    if option is None or isinstance(option, (str, Path)):
        option = _found(images if option is None else Path(option).expanduser())
    if isinstance(option, Mapping):
        option = TableCaptions(option)
    bind = getattr(option, "bind", None)
    return option if bind is None else bind(images, names)


class FirstCaptions:
    """The captions of the first of several readers that has any for the image.

    Args:
        readers: each as `captions` of `FolderSource` may be: None, a path, a table, or a reader.
    """

    def __init__(self, readers: Sequence[CaptionOption]) -> None:
        if isinstance(readers, (str, Mapping)) or not readers:
            raise ValueError("readers: give a list of at least one, e.g. [captions.json, null]")
        self.options = list(readers)
        self._readers: list[CaptionReader] | None = None

    def bind(self, images: Path, names: Sequence[str]) -> FirstCaptions:
        """The same for this folder of images."""
        bound = FirstCaptions(self.options)
        bound._readers = [caption_reader(option, images, names) for option in self.options]
        return bound

    def __call__(self, name: str) -> Sequence[str]:
        reader = self._reader(name)
        return [] if reader is None else reader(name)

    def weights(self, name: str) -> Sequence[float] | None:
        """How often each caption of an image is drawn; None: all equally often."""
        reader = self._reader(name)
        return None if reader is None else weights_of(reader, name)

    def _reader(self, name: str) -> CaptionReader | None:
        assert self._readers is not None, "bind it to a folder of images first"
        return next((reader for reader in self._readers if any(reader(name))), None)


def _found(path: Path) -> CaptionReader:
    """The captions at a path: those of a file, or the first kind that a folder has."""
    if path.is_file():
        return TableCaptions(path)
    if not path.is_dir():
        raise FileNotFoundError(f"captions: nothing at {path}; give a folder of .txt files, or a .json or .yaml file")
    with os.scandir(path) as entries:
        found = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    names = [name for name in found if name.endswith((".json", *YAML_SUFFIXES))]
    texts = any(name.endswith(".txt") for name in found)  # then another table is about something else
    for suffixes in ((".json",), YAML_SUFFIXES):
        tables = [name for name in names if name.endswith(suffixes)]
        named = [name for name in tables if name.startswith("captions.")]
        if named or (len(tables) == 1 and not texts):
            return TableCaptions(path / (named or tables)[0])
    return SidecarCaptions(path)
