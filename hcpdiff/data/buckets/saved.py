"""Sizes in a file, so that runs can share them.

The file is JSON: `{"sizes": [[height, width], ...]}`, from the tallest to the widest; other keys are not allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hcpdiff.data.buckets.base import Size


def save_sizes(path: str | Path, sizes: Sequence[Size]) -> None:
    """Write sizes to a file, which is replaced as a whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps({"sizes": [list(size) for size in sizes]}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_sizes(path: str | Path, step: int = 1) -> list[Size]:
    """The sizes of a file.

    Args:
        step: what every side must divide by.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or a size does not suit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file: there is no file {path}; write it with save in another run, or leave file out")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"file: {path} is no JSON ({error}); use what save wrote") from error
    sizes = content.get("sizes") if isinstance(content, dict) and content.keys() == {"sizes"} else None
    if not isinstance(sizes, list) or not sizes:
        raise ValueError(f'file: {path} has no sizes; write {{"sizes": [[height, width], ...]}}')
    return list(dict.fromkeys(_size(size, f"file: {path}, sizes[{i}]", step) for i, size in enumerate(sizes)))


def _size(size: object, where: str, step: int) -> Size:
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        raise ValueError(f"{where}: {size!r} is no size; use [height, width]")
    if any(side % step for side in size):
        raise ValueError(f"{where}: sides must divide by {step}, those of {size[0]} x {size[1]} do not")
    return size[0], size[1]
