"""Reading tables row by row: JSON, JSONL, YAML, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hcpdiff.data.sources.parquet import read_parquet
from hcpdiff.data.sources.reading import require

Row = tuple[str, list[Any]]  # where it stands, e.g. "cats.csv, line 7"; its cells, None where it has none
NAME = ""  # the column of the names in {name: {column: cell}}

csv.field_size_limit(2**24)  # of a cell: long captions


def read_rows(path: Path, columns: Sequence[str], name_column: str) -> Iterator[Row]:
    """The rows of a table, only these columns, in their order.

    Args:
        path: of the table; its suffix tells its format.
        columns: names.
        name_column: the one of them that the names fill, if the table is {name: {column: cell}}.

    Raises:
        ValueError: a column is in no row, or a row cannot be read.
    """
    check_format(path)
    reader = _READERS[path.suffix.lower()]
    try:
        if reader in (_read_csv, read_parquet):
            yield from reader(path, columns)
        else:
            yield from _pick(reader(path), columns, name_column, path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"path: {path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def check_format(path: Path) -> None:
    """Stop if the suffix is of no table that can be read.

    Raises:
        ValueError: naming the suffixes that can be.
    """
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"path: {path.name} is no table that can be read; use one of {' '.join(_READERS)}")


def _pick(
    objects: Iterator[tuple[str, str | None, Any]], columns: Sequence[str], name_column: str, path: Path
) -> Iterator[Row]:
    """The wanted columns of rows that are objects; a row may lack some, but not all rows the same."""
    known: dict[str, None] = {}
    empty = True
    for where, name, row in objects:
        if not isinstance(row, Mapping):
            raise ValueError(f"path: {where}: {row!r:.80} is no row; use {{column: cell, ...}}")
        if name is not None:
            row = {name_column: name, **row}
        known.update(dict.fromkeys(map(str, row)))
        empty = False
        yield where, [row.get(column) for column in columns]
    if not empty:
        require(columns, known, "column", path.name, "path")


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        lines = csv.reader(file, delimiter=_delimiter(path, first), strict=True)
        try:
            header = next(lines, [])
            require(columns, header, "column", path.name, "path")
            for column in columns:
                if header.count(column) > 1:
                    raise ValueError(f"path: {path.name} has {header.count(column)} columns {column!r}; rename one")
            places = [header.index(column) for column in columns]
            for cells in lines:
                if len(cells) == len(header):
                    yield f"{path.name}, line {lines.line_num}", [cells[place] or None for place in places]
                elif cells:
                    raise ValueError(
                        f"path: {path.name}, line {lines.line_num}: it has {len(cells)} cells, the header "
                        f"{len(header)}; put cells with commas or line breaks in double quotes"
                    )
        except csv.Error as error:
            raise ValueError(f"path: {path.name}, line {lines.line_num}: {error}") from error


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark in header), ",")  # some spreadsheets write ";"


def _read_jsonl(path: Path) -> Iterator[tuple[str, None, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path.name}, line {number}"
                try:
                    yield where, None, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"path: {where}: not valid JSON: {error.msg} at column {error.colno}") from error


def _read_json(path: Path) -> Iterator[tuple[str, str | None, Any]]:
    """The entries of a list or object one after the other, so that only the text is in memory as a whole."""
    text = path.read_text(encoding="utf-8-sig")
    decode = json.JSONDecoder().raw_decode
    at, line, counted = _skip(text, 0), 1, 0
    if text[at : at + 1] not in ("[", "{"):
        raise ValueError(f"path: {path.name} should hold a list of rows, or {{name: row}}")
    named, end = (text[at] == "{"), ("}" if text[at] == "{" else "]")
    try:
        at = _skip(text, at + 1)
        while text[at : at + 1] != end:
            line, counted = line + text.count("\n", counted, at), at
            name = None
            if named:
                name, at = decode(text, at)
                at = _skip(text, _past(text, _skip(text, at), ":"))
            row, at = decode(text, at)
            yield f"{path.name}, line {line}", name, row
            at = _skip(text, at)
            if text[at : at + 1] != end:
                at = _skip(text, _past(text, at, ","))
        if _skip(text, at + 1) != len(text):
            raise json.JSONDecodeError("something follows the end", text, at + 1)
    except json.JSONDecodeError as error:
        raise ValueError(f"path: {path.name}, line {error.lineno}: not valid JSON: {error.msg}") from error


def _skip(text: str, at: int) -> int:
    """Where the blanks from here on end."""
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _past(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"expected {mark!r}", text, at)
    return at + 1


def _read_yaml(path: Path) -> Iterator[tuple[str, str | None, Any]]:
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if isinstance(root, yaml.SequenceNode):
            entries = [(None, node) for node in root.value]
        elif isinstance(root, yaml.MappingNode):
            entries = root.value
        else:
            raise ValueError(f"path: {path.name} should hold a list of rows, or {{name: row}}")
        for name, node in entries:
            where = f"{path.name}, line {(name or node).start_mark.line + 1}"
            row = loader.construct_document(node)
            yield where, None if name is None else str(loader.construct_document(name)), row
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"path: {path.name}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error


_READERS: dict[str, Callable[..., Any]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": read_parquet,
}
