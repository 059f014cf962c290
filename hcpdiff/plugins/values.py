"""The values that layers take and give: single tensors, tuples, dicts, keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Items = dict[int | str, Any]  # positional values by index, others by name


def first_tensor(items: Items, where: str) -> int | str:
    """The key of the first tensor."""
    for key, value in items.items():
        if isinstance(value, Tensor):
            return key
    raise ValueError(f"{where}: there is no tensor among {list(items) or 'no values'}; override `choose`")


def unpack_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Items:
    """What a layer is called with, by position or name."""
    return {**dict(enumerate(args)), **kwargs}


def pack_input(items: Items) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inverse of `unpack_input`."""
    args = tuple(value for key, value in items.items() if isinstance(key, int))
    return args, {key: value for key, value in items.items() if isinstance(key, str)}


def unpack_output(output: Any) -> Items:
    """What a layer returned, by position or name; a single value is item 0."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, (tuple, list)) else {0: output}


def pack_output(output: Any, items: Items) -> Any:
    """Inverse of `unpack_output`: the items in the form that `output` has."""
    kind = type(output)
    if isinstance(output, Mapping):
        return kind(items) if kind is dict else kind(**{str(key): value for key, value in items.items()})
    if not isinstance(output, (tuple, list)):
        return items[0]
    return kind(*items.values()) if hasattr(output, "_fields") else kind(items.values())


def cut(value: Any, rows: slice | None, batch: int) -> Any:
    """These rows of every tensor of this batch size inside a value; anything else as it is."""
    if rows is None:
        return value
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, (Mapping, tuple, list)):
        return pack_output(value, {key: cut(part, rows, batch) for key, part in unpack_output(value).items()})
    return value


def paste(value: Any, changed: Any, rows: slice | None, batch: int) -> Any:
    """Inverse of `cut`: the value with these rows replaced."""
    if rows is None:
        return changed
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return torch.cat([value[: rows.start], changed.to(value.dtype), value[rows.stop :]])
    if isinstance(value, (Mapping, tuple, list)):
        new = unpack_output(changed)
        return pack_output(value, {key: paste(old, new[key], rows, batch) for key, old in unpack_output(value).items()})
    return changed
