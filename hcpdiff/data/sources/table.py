"""Images and captions named by the rows of a table."""

from __future__ import annotations

import math
import posixpath
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hcpdiff.config.ranges import ExistingPath, positive
from hcpdiff.data.index import FileIndex
from hcpdiff.data.sources.base import Record, Stamps
from hcpdiff.data.sources.cells import Cells
from hcpdiff.data.sources.folder import check_repeat
from hcpdiff.data.sources.parquet import ImageColumns, image_columns
from hcpdiff.data.sources.reading import (
    Content,
    MaskScale,
    Parts,
    Reading,
    check_shape,
    hash_path,
    names_of,
    size_of,
    stamps_of,
)
from hcpdiff.data.sources.rows import check_format, read_rows


class TableSource:
    """The rows of a table: .json, .jsonl, .yaml, .csv, .tsv or .parquet (`pip install hcpdiff[parquet]`).

        source:
          _target_: hcpdiff.data.TableSource
          path: data/cats.csv          # file,text,width,height
          image: file
          caption: text
          width: width                 # optional: then no file is opened to learn its size
          height: height

    A .json or .yaml file holds a list of {column: cell}, or {name of the image: {column: cell}}. In Parquet a column of
    images may hold the files themselves: bytes, or {bytes, path} as Hugging Face writes them.

    Args:
        path: the table.
        images: folder that relative names of images are in; by default that of the table.
        image: column of the images' file names.
        caption: column of captions, or a list of columns; a cell is a text or a list of texts. None: no captions.
        caption_weight: column, or one for each of `caption`, with numbers that say how often a caption is drawn;
            beside a list of captions, a list of numbers.
        width, height: columns of the images' sizes in pixels, upright.
        repeat: how often an epoch shows an image, or a column of such numbers; 1.5 is three times in two epochs.
        loss_mask: column of grey images; an empty cell counts fully.
        inputs: {name: column} of condition images, e.g. {control_image: edges}; they are cut like the image.
        mask_scale, background: see `FolderSource`.

    Raises:
        FileNotFoundError: the table or the folder is missing.
        ValueError: a column is missing, or a line of the table is wrong; when the source is first used.
    """

    def __init__(
        self,
        path: Annotated[str | Path, ExistingPath("file")],
        *,
        images: Annotated[str | Path, ExistingPath("folder")] | None = None,
        image: str = "image",
        caption: str | Sequence[str] | None = "caption",
        caption_weight: str | Sequence[str] | None = None,
        width: str | None = None,
        height: str | None = None,
        repeat: Annotated[float, positive] | str = 1,
        loss_mask: str | None = None,
        inputs: Mapping[str, str] | None = None,
        mask_scale: MaskScale = "linear",
        background: Sequence[int] = (255, 255, 255),
    ) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"path: no file at {path}; give a table, e.g. a .csv or .jsonl file")
        check_format(self.path)
        self.images = self.path.parent if images is None else Path(images).expanduser()
        if not self.images.is_dir():
            raise FileNotFoundError(f"images: no folder at {images}; create it or set images")
        if (width is None) != (height is None):
            raise ValueError("width: sizes need both columns; set width and height, or neither")
        self.caption = names_of(caption)
        self.caption_weight = names_of(caption_weight)
        if self.caption_weight and len(self.caption_weight) != len(self.caption):
            raise ValueError(
                f"caption_weight: {len(self.caption_weight)} columns for {len(self.caption)} of captions; name one for "
                "each"
            )
        self.image, self.width, self.height, self.loss_mask = image, width, height, loss_mask
        self.inputs = dict(inputs or {})
        self._repeat = repeat if isinstance(repeat, str) else check_repeat(repeat, "repeat")
        self.reading = Reading(background, mask_scale)
        self._hash_path: Callable[[str], str] = hash_path

    def __len__(self) -> int:
        return len(self._packed) if self._names is None and self._packed is not None else len(self._names or ())

    def key(self, index: int) -> str:
        """The image's name in the table; `#1` and so on tell rows of the same image apart."""
        if self._names is None:
            return f"{self.path.name}/{index:07}"
        occurrence = int(self._occurrences[index])
        return f"{self._names[index]}" + (f"#{occurrence}" if occurrence else "")

    def size(self, index: int) -> tuple[int, int]:
        said = self._said(index)
        if said is not None:
            return said
        return size_of(self._needed(self.image, index))

    def sizes(self) -> np.ndarray | None:
        """(N, 2) of all images, (height, width), if the table has columns for them; 0 where a cell is empty."""
        return self._sizes

    def stamps(self) -> Stamps | None:
        """Of the image files; None if the table holds the images."""
        names = self._names
        return None if names is None else stamps_of(self.images / str(names[index]) for index in range(len(names)))

    def captions(self, index: int) -> list[str]:
        return [text for text, _ in self._weighted(index)]

    def caption_weights(self, index: int) -> list[float] | None:
        """How often each caption is drawn, relative to the others."""
        return [weight for _, weight in self._weighted(index)] if self.caption_weight else None

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        record = self.reading.load(self._parts(index), at_least)
        said = self._said(index)
        if said is not None:
            check_shape(record.image, said, self.path.name)
        return record

    def fingerprint(self, index: int) -> str:
        """Hash of all that `load` gives for this image, whatever the files are called."""
        return self.reading.fingerprint(self._parts(index), self._hash_path)

    def use_index(self, index: FileIndex) -> None:
        """Take the hashes of unchanged files from there."""
        self._hash_path = index.fingerprint

    @property
    def repeat(self) -> float | np.ndarray:
        """How often an epoch shows an image: one number, or (N,) of them."""
        return self._table["repeat", self._repeat] if isinstance(self._repeat, str) else self._repeat

    def _said(self, index: int) -> tuple[int, int] | None:
        """(height, width) by the table, if it says so."""
        height, width = (0, 0) if self._sizes is None else self._sizes[index].tolist()
        return (height, width) if height and width else None

    def _weighted(self, index: int) -> list[tuple[str, float]]:
        """The captions of a row and how often each is drawn."""
        pairs: list[tuple[str, float]] = []
        for column, weight_column in zip(self.caption, self.caption_weight or self.caption, strict=True):
            cell: Any = self._table["caption", column][index]
            texts = cell if isinstance(cell, list) else [cell]
            weights: Any = self._table["weight", weight_column][index] if self.caption_weight else 1.0
            weights = weights if isinstance(weights, list) else [weights] * len(texts)
            if len(weights) != len(texts):
                raise ValueError(f"{self.key(index)}: {column} has {len(texts)} captions, and {len(weights)} weights")
            pairs += [(text.strip(), w) for text, w in zip(texts, weights, strict=True) if text and text.strip()]
        return pairs

    def _parts(self, index: int) -> Parts:
        mask = None if self.loss_mask is None else self._content(self.loss_mask, index)
        inputs = {name: self._needed(column, index) for name, column in self.inputs.items()}
        return Parts(self._needed(self.image, index), mask, inputs)

    def _needed(self, column: str, index: int) -> Content:
        content = self._content(column, index)
        if content is None:
            raise ValueError(f"the cell of column {column!r} is empty")
        return content

    def _content(self, column: str, index: int) -> Content | None:
        if self._packed is not None and column in self._packed.columns:
            cell = self._packed.cell(column, index)
            cell = _file(cell) if isinstance(cell, str) else cell
        else:
            cell = self._table["file", column][index]
        return self.images / cell if isinstance(cell, str) else cell

    @cached_property
    def _packed(self) -> ImageColumns | None:
        """The columns that hold images themselves."""
        if self.path.suffix.lower() != ".parquet":
            return None
        found = image_columns(self.path, self._files)
        return ImageColumns(self.path, found) if found else None

    @property
    def _names(self) -> Cells | None:
        """Of the image files; None if the table holds the images."""
        return self._table.get(("file", self.image))

    @cached_property
    def _occurrences(self) -> np.ndarray:
        return self._table["file", self.image].occurrences()

    @cached_property
    def _sizes(self) -> np.ndarray | None:
        if self.width is None or self.height is None:
            return None
        return np.stack([self._table["number", self.height], self._table["number", self.width]], axis=1)

    @property
    def _files(self) -> list[str]:
        """The columns of images, each once."""
        return list(dict.fromkeys([self.image, *filter(None, [self.loss_mask]), *self.inputs.values()]))

    @cached_property
    def _table(self) -> dict[tuple[str, str], Any]:
        """All columns but those that hold images, by (what they are read as, name)."""
        packed = [] if self._packed is None else self._packed.columns
        kinds = {("file", column): _optional_file for column in self._files if column not in packed}
        if ("file", self.image) in kinds:
            kinds["file", self.image] = _file
        kinds |= {("caption", column): _caption for column in self.caption}
        kinds |= {("weight", column): _weight for column in self.caption_weight}
        kinds |= {("number", column): _side for column in (self.width, self.height) if column is not None}
        if isinstance(self._repeat, str):
            kinds["repeat", self._repeat] = _above_0
        columns: dict[tuple[str, str], Any] = {
            use: array("d") if use[0] in ("number", "repeat") else Cells() for use in kinds
        }
        for where, cells in read_rows(self.path, [column for _, column in kinds], self.image) if kinds else ():
            for (use, check), cell in zip(kinds.items(), cells, strict=True):
                try:
                    columns[use].append(check(cell))
                except ValueError as error:
                    raise ValueError(f"path: {where}: {use[1]}: {error}") from error
        if not (len(next(iter(columns.values()))) if columns else len(self._packed or ())):
            raise ValueError(f"path: {self.path.name} has no rows")
        types = {"number": np.int32, "repeat": np.float64}
        return {use: np.array(column, types[use[0]]) if use[0] in types else column for use, column in columns.items()}


def _file(cell: object) -> str:
    """The name of a file: absolute, or relative and within its folder."""
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{cell!r} is no name of a file")
    if "://" in cell:
        raise ValueError(f"{cell!r} is an address, and nothing is downloaded; fetch the files first")
    name = cell.strip().replace("\\", "/")
    if posixpath.normpath(name).split("/")[0] == "..":
        raise ValueError(f"{cell!r} leads out of the folder of images; set images, or use an absolute path")
    return name


def _optional_file(cell: object) -> str | None:
    return None if cell in (None, "") else _file(cell)


def _caption(cell: object) -> str | list[str] | None:
    texts = cell if isinstance(cell, list) else [cell]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"{cell!r} is no caption; use a text or a list of texts")
    return cell  # type: ignore[return-value]


def _weight(cell: object) -> float | list[float]:
    return [_above_0(part) for part in cell] if isinstance(cell, list) else 1.0 if cell is None else _above_0(cell)


def _side(cell: object) -> int:
    """A number of pixels; 0 if the cell is empty."""
    if cell in (None, ""):
        return 0
    number = _above_0(cell)
    if number != int(number):
        raise ValueError(f"{cell!r} is no whole number of pixels")
    return int(number)


def _above_0(cell: object) -> float:
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(cell, bool) or not 0 < number < math.inf:
        raise ValueError(f"{cell!r} is no number above 0")
    return number
