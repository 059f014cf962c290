"""Images and captions of a dataset of the `datasets` library, from a folder or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from hcpdiff.config.ranges import positive
from hcpdiff.data.sources.base import Record
from hcpdiff.data.sources.folder import check_repeat
from hcpdiff.data.sources.reading import (
    Content,
    MaskScale,
    Parts,
    Reading,
    captions_of,
    hash_path,
    names_of,
    require,
    size_of,
)

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}

_FILE_TYPES = ("binary", "large_binary", "string", "large_string")  # of a column: the file itself, or its name


class HuggingFaceColumns:
    """Which columns of a dataset are what; see `HuggingFaceSource` for the arguments."""

    def __init__(
        self, image: str, caption: str | Sequence[str] | None, loss_mask: str | None, inputs: Mapping[str, str] | None
    ) -> None:
        self.image = image
        self.captions = names_of(caption)
        self.loss_mask = loss_mask
        self.inputs = dict(inputs or {})
        self.pictures = list(dict.fromkeys([image, *names_of(loss_mask), *self.inputs.values()]))

    @property
    def all(self) -> list[str]:
        """Their names, each once."""
        return list(dict.fromkeys([*self.pictures, *self.captions]))

    def undecoded(self, dataset: Any) -> Any:
        """The dataset with its images as the bytes of their files.

        Raises:
            ValueError: a column of images holds something else.
        """
        from datasets import Image

        for column in self.pictures:
            kind = (dataset.features or {}).get(column)
            if isinstance(kind, Image):
                dataset = dataset.cast_column(column, Image(decode=False))
            elif not (kind is None or isinstance(kind, dict) or getattr(kind, "dtype", None) in _FILE_TYPES):
                raise ValueError(f"column {column!r} holds {getattr(kind, 'dtype', kind)}, not images")
        return dataset

    def parts(self, row: Mapping[str, Any]) -> Parts:
        """The images of a row."""
        mask = None if self.loss_mask is None else _content(row[self.loss_mask])
        inputs = {name: _needed(row, column) for name, column in self.inputs.items()}
        return Parts(_needed(row, self.image), mask, inputs)

    def texts(self, row: Mapping[str, Any], features: Mapping[str, Any] | None) -> list[str]:
        """The captions of a row; of a class label, its name."""
        found: list[str] = []
        for column in self.captions:
            cell = row[column]
            name_of = getattr((features or {}).get(column), "int2str", None)
            found += captions_of(name_of(cell) if name_of and isinstance(cell, int) else cell, f"column {column!r}")
        return found


class HuggingFaceSource:
    """A dataset of the `datasets` library (`pip install hcpdiff[datasets]`): of the hub, or in a local folder.

        source: {_target_: hcpdiff.data.HuggingFaceSource, path: lambdalabs/naruto-blip-captions, caption: text}

    Code that comes with a dataset is never run.

    Args:
        path: name on the hub; a folder written by `save_to_disk`; a folder of data files or images; or one such file
            (.parquet, .arrow, .json, .jsonl, .csv).
        split: of the dataset, also a part of it like "train[:1000]".
        image: column of images.
        caption: column of captions, or a list of columns; a cell is a text, a list of texts or a class label.
            None: no captions.
        name: configuration of the dataset, if it has several.
        revision: branch, tag or commit on the hub; a commit makes sure that the data stays the same.
        loss_mask: column of grey images; an empty cell counts fully.
        inputs: {name: column} of condition images, e.g. {control_image: edges}; they are cut like the image.
        mask_scale, background: see `FolderSource`.
        repeat: how often an epoch shows each image.

    Raises:
        FileNotFoundError: there is no such dataset; when the source is first used.
        ValueError: a split or column is missing; when the source is first used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        image: str = "image",
        caption: str | Sequence[str] | None = "text",
        name: str | None = None,
        revision: str | None = None,
        loss_mask: str | None = None,
        inputs: Mapping[str, str] | None = None,
        mask_scale: MaskScale = "linear",
        background: Sequence[int] = (255, 255, 255),
        repeat: Annotated[float, positive] = 1,
    ) -> None:
        self.path, self.split, self.name, self.revision = str(path), split, name, revision
        self.columns = HuggingFaceColumns(image, caption, loss_mask, inputs)
        self.reading = Reading(background, mask_scale)
        self.repeat = check_repeat(repeat, "repeat")

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, index: int) -> str:
        """The split and the number of the row."""
        return f"{self.split}/{index:07}"

    def size(self, index: int) -> tuple[int, int]:
        return size_of(_needed(self._images[index], self.columns.image))

    def captions(self, index: int) -> list[str]:
        if not self.columns.captions:
            return []
        return self.columns.texts(self._captions[index], self._dataset.features)

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return self.reading.load(self.columns.parts(self._pictures[index]), at_least)

    def fingerprint(self, index: int) -> str:
        """Hash of all that `load` gives for this image, wherever it is."""
        return self.reading.fingerprint(self.columns.parts(self._pictures[index]), hash_path)

    @cached_property
    def _dataset(self) -> Any:
        dataset = load(self.path, self.split, self.name, self.revision, streaming=False)
        require(self.columns.all, dataset.column_names, "column", self.path, "path")
        return self.columns.undecoded(dataset)

    @cached_property
    def _images(self) -> Any:
        return self._dataset.select_columns([self.columns.image])

    @cached_property
    def _pictures(self) -> Any:
        return self._dataset.select_columns(self.columns.pictures)

    @cached_property
    def _captions(self) -> Any:
        return self._dataset.select_columns(list(dict.fromkeys(self.columns.captions)))


def load(path: str, split: str, name: str | None, revision: str | None, *, streaming: bool) -> Any:
    """A split of a dataset; see `HuggingFaceSource`.

    Args:
        streaming: read it from the start on, instead of fetching all of it first.

    Raises:
        FileNotFoundError: there is no such dataset.
        ValueError: there is no such split or configuration, or `datasets` is missing or old.
    """
    try:
        import datasets as library
    except ImportError as error:
        raise ValueError(
            "path: this source needs the datasets library; run: pip install 'hcpdiff[datasets]'"
        ) from error
    datasets: Any = library
    if int(datasets.__version__.split(".")[0]) < 4:  # older ones may run code of the dataset
        raise ValueError(f"path: datasets {datasets.__version__} is too old; run: pip install 'hcpdiff[datasets]'")
    where = Path(path).expanduser()
    if not where.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1 or where.suffix in _BUILDERS):
        raise FileNotFoundError(f"path: no dataset at {path}; give a folder, a data file, or a name on the hub")
    if where.is_file():
        require([where.suffix.lower()], _BUILDERS, "format", "what can be read", "path")
    try:
        if (where / "state.json").is_file() or (where / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(where))
        elif where.is_file():
            builder, files = _BUILDERS[where.suffix.lower()], {"train": str(where)}
            return datasets.load_dataset(builder, data_files=files, split=split, streaming=streaming)
        else:
            at = str(where) if where.is_dir() else path
            return datasets.load_dataset(at, name, split=split, revision=revision, streaming=streaming)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"path: {error}") from error
    except ConnectionError as error:
        raise FileNotFoundError(f"path: {path} cannot be reached: {error}") from error
    except ValueError as error:
        raise ValueError(f"split or path: {path}, {split!r}: {error}") from error
    return _split_of(datasets, saved, path, split, streaming)


def _split_of(datasets: Any, found: Any, path: str, split: str, streaming: bool) -> Any:
    """Of what `save_to_disk` wrote: one split, or several by name; a part of a split like "train[:10]" too."""
    base, bracket, span = split.partition("[")
    if isinstance(found, datasets.DatasetDict):
        require([base], found, "split", path, "split")
        found = found[base]
    else:
        require([base], [str(found.split or "train")], "split", path, "split")
    if bracket:
        part = datasets.ReadInstruction.from_spec(f"train[{span}")
        (whole,) = part.to_absolute({"train": len(found)})
        found = found.select(range(whole.from_, whole.to))
    return found.to_iterable_dataset() if streaming else found


def _needed(row: Mapping[str, Any], column: str) -> Content:
    content = _content(row[column])
    if content is None:
        raise ValueError(f"the cell of column {column!r} is empty")
    return content


def _content(cell: Any) -> Content | None:
    """What is in a cell of images: bytes, the path of a file, {bytes, path}, or nothing."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        if "://" not in cell:
            return Path(cell)
        import fsspec  # comes with datasets; reads what a streamed dataset names on the hub

        with fsspec.open(cell, "rb") as file:
            return file.read()  # type: ignore[union-attr]
    if cell is not None and not isinstance(cell, (bytes, bytearray)):
        raise ValueError(f"a cell of images holds a {type(cell).__name__}, not the bytes or name of a file")
    return None if cell is None else bytes(cell)
