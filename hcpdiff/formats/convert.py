"""A LoRA file, or one of LyCORIS' other forms, from one program's form to another's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hcpdiff.formats import diffusers, kohya, nearest, peft, reading
from hcpdiff.formats.changes import Changes
from hcpdiff.formats.fused_changes import alone
from hcpdiff.formats.lora_files import write_tensors
from hcpdiff.formats.names import Architecture, architecture

log = logging.getLogger("hcpdiff.formats")

TARGETS = ("kohya", "lycoris", "diffusers", "peft", "comfyui", "webui")
DROPPED = ("hcpdiff.plugin", diffusers.METADATA)  # say what only the old form has


def convert(
    path: str | Path,
    to: str,
    out: str | Path | None = None,
    family: str | None = None,
    *,
    rank: int | None = None,
) -> Path:
    """Write a LoRA in another form; strength and layers stay what they are.

    diffusers and PEFT read LoRA and DoRA alone. For them another form of LyCORIS becomes the nearest LoRA, and what is
    lost by that is logged.

    Args:
        path: any file of a LoRA or of LyCORIS' forms, or a folder of PEFT.
        to: whose form; "comfyui" and "webui" take one that loads there.
        out: the file, for "peft" a folder; None is beside `path`, with the form in its name.
        family: one of `names.ARCHITECTURES`; None finds out.
        rank: of the nearest LoRA; None is 64.

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
    form = {"comfyui": _comfyui(read.updates, arch), "webui": "kohya"}.get(to, to)
    ending = "" if form == "peft" else ".safetensors"
    written = Path(out).expanduser() if out else path.with_name(f"{path.stem}-{to}{ending}")
    if written.resolve() == path.resolve():
        raise ValueError(f"out: {written} is the file that is converted; name another")
    if read.words and form not in ("kohya", "lycoris"):
        log.warning("%s: the learned words in it are left out, as other programs read them in kohya's form only", path)
    updates = _loras(read.updates, rank, arch, path) if form in ("peft", "diffusers") else read.updates
    if rank is not None and updates is read.updates:
        raise ValueError(f"rank: {path} is written as {form} without another rank; remove it")
    header = {key: value for key, value in read.header.items() if key not in DROPPED} | {"format": "pt"}
    write(written, updates, arch, form, header, words=read.words)
    return written


def write(
    path: Path,
    updates: Changes,
    arch: Architecture,
    form: str,
    header: Mapping[str, str],
    *,
    words: Mapping[str, Tensor] | None = None,
) -> None:
    """Write updates in a form: "kohya", "lycoris", "diffusers", or "peft", which is a folder and has no header.

    Args:
        words: tensors of learned words, which only the forms of kohya and LyCORIS have.

    Raises:
        ValueError: listing the layers that have no place there.
    """
    if form == "peft":
        peft.write(path, updates, arch)
    elif form == "diffusers":
        tensors, more = diffusers.write(updates, arch)
        write_tensors(path, tensors, {**header, **more}, hashed=True)
    else:
        if form == "lycoris":
            tensors = kohya.write_lycoris({layer: alone(update) for layer, update in updates.items()}, arch)
        else:
            tensors = kohya.write(updates, arch)
        write_tensors(path, tensors | dict(words or {}), header, hashed=True)


def _comfyui(updates: Changes, arch: Architecture) -> str:
    if arch.form == "kohya" or all(update.plain for update in updates.values()):
        return arch.form
    return "kohya" if kohya.fits(updates, arch) and not kohya.fits_lycoris(updates, arch) else "lycoris"


def _loras(updates: Changes, rank: int | None, arch: Architecture, path: Path) -> Changes:
    if all(diffusers.holds(update) for update in updates.values()):
        return updates
    rank = nearest.RANK if rank is None else rank
    found = nearest.loras(updates, rank, arch.name)
    worst = max(found.lost, key=lambda layer: found.lost[layer])
    log.warning(
        "%s: %d of %d layers became LoRAs of rank %d, which lack %.1f%% of the change at %s, where it is most",
        *(path, len(found.lost), len(updates), rank, 100 * found.lost[worst], worst),
    )
    return found.updates
