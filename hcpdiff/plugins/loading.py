"""Strict loading: everything fits, or one error says all that does not and nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys of a file."""

    loaded: list[str]
    missing: list[str] = field(default_factory=list)  # wanted, but not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, but of no use


@torch.no_grad()
def copy_all(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, where: str) -> LoadReport:
    """Copy given tensors into one's own of the same names.

    Raises:
        ValueError: listing all keys that are missing, unexpected or of another shape. Nothing is copied then.
    """
    common = [key for key in own if key in given]
    shapes = [f"{k} {list(given[k].shape)} for {list(own[k].shape)}" for k in common if given[k].shape != own[k].shape]
    problems = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": shapes,
    }
    if any(problems.values()):
        parts = [f"{len(keys)} {what}: {_listing(keys)}" for what, keys in problems.items() if keys]
        raise ValueError(f"{where}: {len(common) - len(shapes)} of {len(own)} tensors fit; {'; '.join(parts)}")
    for key in common:
        own[key].copy_(given[key])
    return LoadReport(loaded=common)


def _listing(keys: Sequence[str], most: int = 20) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
