"""Sources that are read from the start on, whose length nobody knows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hcpdiff.data.images.reading import read_size
from hcpdiff.data.scan import BadFile, attempt
from hcpdiff.data.sources.base import Record
from hcpdiff.data.sources.huggingface import HuggingFaceColumns, load
from hcpdiff.data.sources.reading import MaskScale, Reading, require, size_of
from hcpdiff.data.sources.shards import Section, members, shard_paths
from hcpdiff.data.sources.webdataset import Layout, Samples, check_members, find_samples, prefixes

Load = Callable[[tuple[int, int] | None], Record]


@dataclass(frozen=True)
class StreamItem:
    """One example of a stream, not yet decoded."""

    key: str  # unique within the stream
    size: tuple[int, int]  # (height, width) of the upright image
    captions: Sequence[str]
    load: Load  # the decoded example; it may be scaled down, but not below its argument (height, width)


@runtime_checkable
class StreamSource(Protocol):
    """Any class with this method is a stream; write your own and name it by `_target_`."""

    def iterate(self, start: int) -> Iterator[StreamItem | BadFile]:
        """One pass over all examples, from number `start` on, without decoding; those that cannot be used as BadFile.

        Every pass gives the same examples in the same order. `load` may be called later, and by other threads.
        """
        ...


class TarStream:
    """The samples of local .tar archives, one archive after the other; of each only the headers are kept in memory.

        source: {_target_: hcpdiff.data.TarStream, shards: "data/cats-{000..999}.tar", caption: txt}

    See `WebDatasetSource` for the arguments; that one shuffles perfectly, but reads the headers of all archives first.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        image: str | Sequence[str] | None = None,
        caption: str | Sequence[str] | None = "txt",
        loss_mask: str | None = None,
        inputs: Mapping[str, str] | None = None,
        index: str | Path | None = None,
        mask_scale: MaskScale = "linear",
        background: Sequence[int] = (255, 255, 255),
    ) -> None:
        self.shards = shard_paths(shards)
        self.layout = Layout(image, caption, loss_mask, inputs)
        self.index = None if index is None else Path(index).expanduser()
        self.reading = Reading(background, mask_scale)

    def iterate(self, start: int) -> Iterator[StreamItem | BadFile]:
        for shard, (path, prefix) in enumerate(zip(self.shards, prefixes(self.shards), strict=True)):
            samples = find_samples(members(path, self.index), self.layout, path)
            if not shard:
                check_members([samples], self.layout)
            for local in range(min(start, len(samples.places)), len(samples.places)):
                yield self._item(path, prefix, samples, local)
            start = max(0, start - len(samples.places))

    def _item(self, path: Path, prefix: str, samples: Samples, local: int) -> StreamItem | BadFile:
        key, places = f"{prefix}/{samples.keys[local]}", samples.places[local]

        def read() -> StreamItem:
            with io.BufferedReader(Section(path, places[0]), 4096) as file:
                size = read_size(file)
            return StreamItem(
                key,
                size,
                self.layout.texts(path, places, key),
                lambda at_least: self.reading.load(self.layout.parts(path, places), at_least),
            )

        return _item_or_bad(key, read)


class HuggingFaceStream:
    """A dataset of the `datasets` library, read from the start on instead of fetched as a whole.

        source: {_target_: hcpdiff.data.HuggingFaceStream, path: some/large-dataset, caption: text}

    See `HuggingFaceSource` for the arguments. The files of buffered images are in memory.
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
    ) -> None:
        self.path, self.split, self.name, self.revision = str(path), split, name, revision
        self.columns = HuggingFaceColumns(image, caption, loss_mask, inputs)
        self.reading = Reading(background, mask_scale)

    def iterate(self, start: int) -> Iterator[StreamItem | BadFile]:
        dataset = load(self.path, self.split, self.name, self.revision, streaming=True)
        if dataset.features is None:  # of some formats they show in the first row only
            for row in islice(dataset, 1):
                require(self.columns.all, row, "column", self.path, "path")
        else:
            require(self.columns.all, dataset.features, "column", self.path, "path")
            dataset = self.columns.undecoded(dataset.select_columns(self.columns.all))
        for number, row in enumerate(dataset.skip(start) if start else dataset, start):
            yield self._item(f"{self.split}/{number:07}", row, dataset.features)

    def _item(self, key: str, row: Mapping[str, Any], features: Mapping[str, Any] | None) -> StreamItem | BadFile:
        def read() -> StreamItem:
            parts = self.columns.parts(row)
            return StreamItem(
                key,
                size_of(parts.image),
                self.columns.texts(row, features),
                lambda at_least: self.reading.load(parts, at_least),
            )

        return _item_or_bad(key, read)


def _item_or_bad(key: str, read: Callable[[], StreamItem]) -> StreamItem | BadFile:
    bad: list[BadFile] = []
    return attempt(read, key, bad) or bad[0]
