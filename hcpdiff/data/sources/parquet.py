"""Parquet tables: rows of small cells, and images that are stored in the table itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hcpdiff.data.sources.reading import require

_HELD = 256 * 2**20  # bytes of row groups that are kept decoded


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """The rows, only these columns, a row group after the other.

    Raises:
        ValueError: a column is missing.
    """
    file = _open(path)
    require(columns, file.schema_arrow.names, "column", path.name, "path")
    number = 0
    for batch in file.iter_batches(batch_size=4096, columns=list(dict.fromkeys(columns))):
        cells = [batch.column(column).to_pylist() for column in columns]
        for offset in range(batch.num_rows):
            number += 1
            yield f"{path.name}, row {number}", [column[offset] for column in cells]


def image_columns(path: Path, columns: Sequence[str]) -> list[str]:
    """Which of these columns hold images themselves: bytes, or {bytes, path}."""
    import pyarrow.types as types

    schema = _open(path).schema_arrow
    found = []
    for name in columns:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and (types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind)):
            found.append(name)
    return found


class ImageColumns:
    """Columns of images in a Parquet file. Reading one image decodes its row group; a few groups are kept.

    Images are read in random order, so files whose groups are small, e.g. 100 images, are read fast.

    Args:
        path: of the table.
        columns: of bytes or {bytes, path}.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = list(columns)
        metadata = _open(path).metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._forget()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def cell(self, column: str, row: int) -> bytes | str | None:
        """The bytes of an image, the name of its file, or None if there is none."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = self._group(group).column(column)[row - int(self._starts[group])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        return value or None

    def _group(self, group: int) -> Any:
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
            if self._file is None:
                self._file = _open(self.path)
            table = self._file.read_row_group(group, columns=self.columns)
            self._groups[group] = table
            while len(self._groups) > 1 and sum(held.nbytes for held in self._groups.values()) > _HELD:
                self._groups.popitem(last=False)
            return table

    def _forget(self) -> None:
        self._file: Any = None
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "columns": self.columns, "_starts": self._starts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError("path: Parquet tables need pyarrow; run: pip install 'hcpdiff[parquet]'") from error
    from pyarrow import ArrowInvalid

    try:
        return parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"path: {path} cannot be read as Parquet: {error}") from error
