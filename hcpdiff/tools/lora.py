"""Reading the LoRA files that the tools work on, and where new ones go."""

from __future__ import annotations

import json
from pathlib import Path

from hcpdiff.formats import reading
from hcpdiff.formats.reading import LoRAFile


def read_lora(path: str | Path, family: str | None = None) -> LoRAFile:
    """Any LoRA file whose effect is a change of weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or works on some rows of a batch alone.
    """
    read = reading.read(path, family)
    if branch := json.loads(read.header.get("hcpdiff.plugin", "{}")).get("branch"):
        raise ValueError(f"{path}: it works on the {branch} branch alone, which a change of weights cannot")
    return read


def check_new(out: str | Path, *sources: str | Path) -> Path:
    """Where to write; nothing is overwritten.

    Raises:
        ValueError: there is something.
    """
    out = Path(out).expanduser()
    if any(Path(source).expanduser().resolve() == out.resolve() for source in sources):
        raise ValueError(f"out: {out} is what is read; name another")
    if out.exists():
        raise ValueError(f"out: {out} is there already and is not overwritten; remove it, or name another")
    return out
