"""JSON and YAML files that hold one mapping."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from hcpdiff.data.captions.text import read_text

YAML_SUFFIXES = (".yaml", ".yml")
_DEEPEST = 8  # levels; a table needs four
_NULLS = ("", "~", "null", "Null", "NULL")
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # in C where libyaml is there


def read_table(path: Path, key: str) -> dict[Any, Any]:
    """The mapping that a .json or .yaml file holds.

    In YAML every scalar is a text, so that the name 001 and the caption `no` stay what they are; only null is None.

    Args:
        path: the file.
        key: what errors begin with.

    Raises:
        ValueError: it is broken, has a name twice, or is no mapping.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", *YAML_SUFFIXES):
        raise ValueError(
            f"{key}: {path} is neither .json nor .yaml; for .csv, .jsonl and .parquet use hcpdiff.data.TableSource"
        )
    text = read_text(path, key)
    try:
        table = _yaml(text) if suffix in YAML_SUFFIXES else json.loads(text, object_pairs_hook=_mapping)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        kind = "YAML" if suffix in YAML_SUFFIXES else "JSON"
        raise ValueError(f"{key}: {path} is not valid {kind}: {error}") from error
    except RecursionError:
        raise ValueError(f"{key}: {path} is nested too deeply; write {{image name: caption}}") from None
    except ValueError as error:
        raise ValueError(f"{key}: {path}: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{key}: {path} should hold {{image name: caption}}, not a {type(table).__name__}")
    return table


def _yaml(text: str) -> Any:
    """YAML as plain data. Made from its events, as PyYAML's own way is recursive and a deep file crashes it."""
    open_: list[tuple[Any, list[Any]]] = [(None, [])]  # the event that began it, and what is in it so far
    anchors: dict[str, Any] = {}
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_) > _DEEPEST:
                raise RecursionError
            open_.append((event, []))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            event, items = open_.pop()
            value = _pairs(items) if isinstance(event, yaml.MappingStartEvent) else items
        elif isinstance(event, yaml.ScalarEvent):
            value = None if event.implicit[0] and event.value in _NULLS else event.value
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"there is no &{event.anchor} before *{event.anchor}")
            open_[-1][1].append(anchors[event.anchor])
            continue
        else:
            continue
        if event.anchor is not None:
            anchors[event.anchor] = value
        open_[-1][1].append(value)
    documents = open_[0][1]
    if len(documents) > 1:
        raise ValueError("there are several documents in it; leave out the lines ---")
    return documents[0] if documents else {}


def _pairs(items: Sequence[Any]) -> dict[Any, Any]:
    names = items[::2]
    wrong = next((name for name in names if isinstance(name, (list, dict))), None)
    if wrong is not None:
        raise ValueError("a name should be a text, not a list or a mapping")
    return _mapping(zip(names, items[1::2], strict=True))


def _mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"{name!r} is there twice; leave one of the two out")
        table[name] = value
    return table
