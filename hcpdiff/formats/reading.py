"""Any file with a LoRA, or another of LyCORIS' forms, to {layer: change}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hcpdiff.formats import detect, diffusers, kohya, original, peft
from hcpdiff.formats.changes import AnyChange, Changes
from hcpdiff.formats.dit_names import Original
from hcpdiff.formats.fused_changes import separated, swapped
from hcpdiff.formats.lora_files import Update, listing, parted, read_tensors, split
from hcpdiff.formats.modules import grouped
from hcpdiff.formats.names import ARCHITECTURES, Architecture, architecture, find

_ARCHITECTURES = {  # {how modelspec's name of an architecture begins: family}
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-3": "sd3",
    "stable-diffusion-v": "sd",
    "flux-1": "flux",
    "Z-Image": "zimage",
    "Qwen-Image": "qwen_image",
}


@dataclass(frozen=True)
class LoRAFile:
    """What is in a LoRA file."""

    form: str  # one of `detect.FORMS`
    family: str  # one of `names.ARCHITECTURES`
    updates: dict[str, AnyChange]  # by layer, as `names` writes it
    header: dict[str, str]
    words: dict[str, Tensor]  # bundled with it, by their keys; see `word_files`


def read(path: str | Path, family: str | None = None) -> LoRAFile:
    """Read a file, or a folder of PEFT.

    Args:
        family: the kind of model it is for; None finds out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no LoRA, its model cannot be told, or keys have no meaning: all of them are listed.
    """
    path = Path(path).expanduser()
    files = peft.weights_in(path) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: there is no such LoRA file")
    updates: dict[str, AnyChange] = {}
    form, header, words = "", {}, {}
    for file in files:
        tensors, header = read_tensors(file)
        tensors, words = parted(tensors)
        form = detect.form(tensors, str(file))
        family = family or _noted(header) or _of_modelspec(header) or detect.family(tensors)
        if family is None:
            raise ValueError(f"{file}: it does not tell for which model it is; say it: {', '.join(ARCHITECTURES)}")
        folder = file.parent.name if file.parent != path and path.is_dir() else None
        updates |= parse(tensors, header, architecture(family), where=str(file), file=file, folder=folder)
    return LoRAFile(form, str(family), updates, header, words)


def _noted(header: Mapping[str, str]) -> str | None:
    """The family that a file of ours says it is for."""
    return json.loads(header.get("hcpdiff.plugin", "{}")).get("file", {}).get("family")


def _of_modelspec(header: Mapping[str, str]) -> str | None:
    """The family by the architecture that a header names, e.g. stable-diffusion-xl-v1-base/lora."""
    named = header.get("modelspec.architecture", "")
    return next((family for start, family in _ARCHITECTURES.items() if named.startswith(start)), None)


def parse(
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    arch: Architecture,
    *,
    where: str,
    file: Path | None = None,
    folder: str | None = None,
) -> dict[str, AnyChange]:
    """The updates that tensors of a file mean.

    Args:
        file: where a PEFT config may lie beside it.
        folder: of diffusers, the part that a PEFT file is for; None is the denoiser.

    Raises:
        ValueError: listing all keys that mean nothing, with their number.
    """
    form = detect.form(tensors, where)
    if form == "original":
        modules, unknown = original.read(tensors)
    else:
        modules, unknown = grouped(tensors)
    if form == "peft" and file is not None:
        modules = peft.with_alphas(modules, peft.config_of(file))
        if folder is not None:
            modules = {f"{folder}.{name.removeprefix(peft.PREFIX)}": update for name, update in modules.items()}
    elif form == "diffusers":
        modules = diffusers.with_alphas(modules, header)
    return _by_layer(modules, unknown, arch, where)


def _by_layer(modules: Changes, unknown: list[str], arch: Architecture, where: str) -> dict[str, AnyChange]:
    updates: dict[str, AnyChange] = {}
    twice: list[str] = []
    unknown = list(unknown)
    for name, update in modules.items():
        known = find(arch, name)
        if known is None:
            unknown.append(name)
            continue
        try:
            parts = _parts(update, known) if known.fused else [update]
        except ValueError as problem:
            raise ValueError(
                f"{where}: {name}: {problem}; it cannot be parted into {', '.join(known.layers)}"
            ) from None
        if not known.fused and not known.layers[0].endswith(known.name) and kohya.swaps(arch, known.layers[0], update):
            parts = [swapped(update)]
        twice += [layer for layer in known.layers if layer in updates]
        updates |= zip(known.layers, parts, strict=True)
    problems = {f"mean no layer of {arch.name}": unknown, "are there twice": twice}
    if any(problems.values()):
        texts = [f"{len(names)} {what}: {listing(names)}" for what, names in problems.items() if names]
        raise ValueError(f"{where}: {len(updates)} layers are understood, but {'; '.join(texts)}")
    return updates


def _parts(update: AnyChange, known: Original) -> Sequence[AnyChange]:
    """Of a fused layer. A LoRA's may have columns of their own there."""
    return split(update, known.shares) if isinstance(update, Update) else separated(update, known.shares)
