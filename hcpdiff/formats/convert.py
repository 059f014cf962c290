"""A LoRA file from one form to another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hcpdiff.formats import diffusers, kohya, peft, reading
from hcpdiff.formats.lora_files import Updates, write_tensors
from hcpdiff.formats.names import Architecture, architecture

log = logging.getLogger("hcpdiff.formats")

TARGETS = ("kohya", "diffusers", "peft", "comfyui", "webui")
DROPPED = ("hcpdiff.plugin", diffusers.METADATA)  # say what only the old form has


def convert(path: str | Path, to: str, out: str | Path | None = None, family: str | None = None) -> Path:
    """Write a LoRA in another form; strength and layers stay what they are.

    Args:
        path: any LoRA file, or a folder of PEFT.
        to: whose form; "comfyui" and "webui" take one that loads there.
        out: the file, for "peft" a folder; None is beside `path`, with the form in its name.
        family: one of `names.ARCHITECTURES`; None finds out.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not understood as a whole, or the other form cannot hold it. Nothing is written then.
    """
    if to not in TARGETS:
        raise ValueError(f"to: {to!r} is no form; use one of {', '.join(TARGETS)}")
    path = Path(path).expanduser()
    read = reading.read(path, family)
    arch = architecture(read.family)
    form = {"comfyui": arch.form, "webui": "kohya"}.get(to, to)
    ending = "" if form == "peft" else ".safetensors"
    written = Path(out).expanduser() if out else path.with_name(f"{path.stem}-{to}{ending}")
    if written.resolve() == path.resolve():
        raise ValueError(f"out: {written} is the file that is converted; name another")
    if read.words and form != "kohya":
        log.warning("%s: the learned words in it are left out, as other programs read them in kohya's form only", path)
    header = {key: value for key, value in read.header.items() if key not in DROPPED} | {"format": "pt"}
    write(written, read.updates, arch, form, header, words=read.words)
    return written


def write(
    path: Path,
    updates: Updates,
    arch: Architecture,
    form: str,
    header: Mapping[str, str],
    *,
    words: Mapping[str, Tensor] | None = None,
) -> None:
    """Write updates in a form: "kohya", "diffusers", or "peft", which is a folder and has no header.

    Args:
        words: tensors of learned words, which only kohya's form has.

    Raises:
        ValueError: listing the layers that have no place there.
    """
    if form == "peft":
        peft.write(path, updates, arch)
    elif form == "kohya":
        write_tensors(path, kohya.write(updates, arch) | dict(words or {}), header, hashed=True)
    else:
        tensors, more = diffusers.write(updates, arch)
        write_tensors(path, tensors, {**header, **more}, hashed=True)
