"""Whether what a file holds is what a model needs; if not, a text that says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hcpdiff.formats.tensor_files.dtypes import dtype_name
from hcpdiff.formats.tensor_files.entries import Entry


def check(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Entry], *, where: str, ask: str, by: str
) -> None:
    """Raise unless every expected tensor is there, of this shape and of numbers that can be weights, and no other.

    Args:
        expected: shapes; `found` has the same names.
        where: what the text begins with.
        ask: the question that ends a text on names.
        by: what comes before the shape that it should be.

    Raises:
        ValueError: the file is another model's, or incomplete.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        counts = f"expected {len(expected)} tensors, found {len(found)}"
        raise ValueError(f"{where}: {counts}: {_some('missing', missing)}{_some('unknown', unknown)}{ask}")
    for key, shape in expected.items():
        if found[key].shape != shape:
            raise ValueError(f"{where}: {key} has shape {found[key].shape}; {by} {shape}")
        dtype = found[key].dtype
        if not dtype.is_floating_point and dtype in (torch.uint8, torch.int8):
            raise ValueError(
                f"{where}: {key} is of {dtype_name(dtype)}, so quantised; expected float32, bfloat16 or float16"
            )


def _some(what: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}); " if names else ""
