"""Captions that belong to one image each: the text file beside it, or its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from hcpdiff.config.ranges import ExistingPath
from hcpdiff.data.captions.names import normal
from hcpdiff.data.captions.text import lines_of, read_text

CaptionReader = Callable[[str], Sequence[str]]
"""Name of an image (its path below the folder of images) -> its captions, of which one is drawn each time.

A reader may have two more methods: `weights(name)` says how often each of the captions is drawn, and
`bind(images, names)` gives the reader for this folder of images with these names, which is used instead of it.
"""

_KEPT = 1 << 14  # captions of so many images stay in memory


def weights_of(reader: CaptionReader, name: str) -> Sequence[float] | None:
    """How often each caption of an image is drawn, relative to the others; None if all are drawn equally often."""
    weights = getattr(reader, "weights", None)
    return None if weights is None else weights(name)


class SidecarCaptions:
    """`<image name without suffix>.txt` beside each image, or at the same place below another folder.

    Args:
        folder: of the text files; None: that of the images.
        per_line: False: the whole file is one caption. True: each line is a caption, and one is drawn each time.
        suffix: of the files' names, e.g. `.caption`.
    """

    def __init__(
        self,
        folder: Annotated[str | Path, ExistingPath("folder")] | None = None,
        *,
        per_line: bool = False,
        suffix: str = ".txt",
    ) -> None:
        if not re.fullmatch(r"(\.[^./\\]+)+", suffix):
            raise ValueError(f"suffix: {suffix!r} is no suffix of a file name; use one like '.txt'")
        self.folder = None if folder is None else Path(folder).expanduser()
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"folder: no folder at {folder}; give the folder of the {suffix} files")
        self.per_line = per_line
        self.suffix = suffix
        self._read: dict[str, list[str]] = {}

    def bind(self, images: Path, names: Sequence[str]) -> SidecarCaptions:
        """The same for this folder of images, unless another was given."""
        folder = images if self.folder is None else self.folder
        return SidecarCaptions(folder, per_line=self.per_line, suffix=self.suffix)

    def __call__(self, name: str) -> list[str]:
        if name not in self._read:
            if len(self._read) >= _KEPT:
                del self._read[next(iter(self._read))]
            path = (self.folder or Path()) / PurePosixPath(name).with_suffix(self.suffix)
            self._read[name] = self._captions(path) if path.is_file() else []
        return self._read[name]

    def _captions(self, path: Path) -> list[str]:
        text = read_text(path, "captions")
        return lines_of(text) if self.per_line else [text.strip()]


class FilenameCaptions:
    """The name of the file is the caption, without its suffix: `red_car.png` is "red car".

    Args:
        of: "file", or "folder" for the name of the subfolder that the image is in; images outside of subfolders then
            have no caption.
        separators: characters that stand for a space; `''` leaves the name as it is.
        strip_numbers: leave out a number before or after the words: `012_red-car_(3)` is "red car". It must stand
            apart, so `gpt4` stays; a name that is only a number is no caption.
    """

    def __init__(
        self, *, of: Literal["file", "folder"] = "file", separators: str = "_-", strip_numbers: bool = False
    ) -> None:
        if of not in ("file", "folder"):
            raise ValueError(f"of: {of!r} is unknown; use 'file' or 'folder'")
        self.of = of
        self.separators = separators
        self.strip_numbers = strip_numbers

    def __call__(self, name: str) -> list[str]:
        path = PurePosixPath(normal(name))
        text = path.stem if self.of == "file" else path.parent.name
        text = " ".join(text.translate(dict.fromkeys(map(ord, self.separators), " ")).split())
        if self.strip_numbers:
            text = re.sub(r"^\d+(?:[\s_.-]+|$)", "", text)
            text = re.sub(r"(?:(?<=[\s_.-])|^)(?:\d+|\(\d+\))$", "", text).rstrip(" _.-")
        return [text] if text else []
