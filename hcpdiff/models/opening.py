"""Whole models without knowing their family: opened, and written in the other layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hcpdiff.formats import single_file
from hcpdiff.formats.tensor_files.dtypes import as_dtype
from hcpdiff.formats.tensor_files.opening import INDEX, is_file, read_json
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.hub import local_folder
from hcpdiff.models.pixart import PixArtSigma
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.qwen_image import QwenImage
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from hcpdiff.models.sdxl import SDXL
from hcpdiff.models.zimage import ZImage

FAMILIES: dict[str, type[PretrainedFamily]] = {
    family.pipeline: family for family in (StableDiffusion, SDXL, SD3, Flux, PixArtSigma, ZImage, QwenImage)
}


def family_of(path: str | Path, *, revision: str | None = None) -> type[PretrainedFamily]:
    """The family of a model: by the class that a folder's model_index.json names, or by the keys of a single file.

    Raises:
        FileNotFoundError: there is no such folder, file or repository.
        ValueError: it is of no family that is known.
    """
    if is_file(path):
        return FAMILIES[single_file.Model(path).layout.pipeline]
    folder = local_folder(path, revision=revision, allow=[INDEX])
    found = read_json(folder / INDEX).get("_class_name")
    if found not in FAMILIES:
        known = ", ".join(f"{pipeline} ({family.__name__})" for pipeline, family in FAMILIES.items())
        raise ValueError(f"{path}: this is a {found}, of no family that is known; known are {known}")
    return FAMILIES[found]


def open_model(path: str | Path, **options: Any) -> PretrainedFamily:
    """A model of any family.

    Args:
        path: folder, owner/name on the hub, or a single .safetensors or .ckpt file.
        options: those of the family's `from_pretrained`.

    Raises:
        FileNotFoundError: there is no such model, or a file of it is missing.
        ValueError: it is of no family that is known, or broken.
    """
    family: Any = family_of(path, revision=options.get("revision"))
    return family.from_pretrained(path, **options)


def convert_model(
    path: str | Path,
    out: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    shard_size: str | int | None = None,
    configs: str | Path | None = None,
) -> Path:
    """Write a model anew: as one file if `out` ends in .safetensors, else as a folder of diffusers' layout.

    Args:
        path: folder, owner/name on the hub, or a single .safetensors or .ckpt file.
        dtype: of all weights; None leaves each as it is.
        shard_size: the most bytes of a file in a folder, such as "5GB"; None writes one for each part.
        configs: of a single file that becomes a folder: a folder, or owner/name, whose configs and tokenizers go with
            it; None takes the folder beside the file that is named like it.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: there is no such model, or what a folder needs besides a single file's weights.
        ValueError: `out` is there already, the model has no such layout, or a setting would do nothing.
    """
    out = Path(out).expanduser()
    kept = None if dtype is None else as_dtype(dtype)
    if out.exists():
        raise ValueError(f"out: {out} is there already; name another")
    if not is_file(out):
        own = {} if configs is None else {"configs": configs}
        open_model(path, dtype=None, vae_dtype=None, **own).save_pretrained(out, dtype=kept, shard_size=shard_size)
        return out
    for name, value in {"shard_size": shard_size, "configs": configs}.items():
        if value is not None:
            raise ValueError(f"{name}: {out} is a single file, for which it does nothing; leave it out")
    if is_file(path):
        single_file.rewrite(single_file.Model(path), out, dtype=kept)
    else:
        single_file.save(open_model(path, dtype=None, vae_dtype=None), out, dtype=kept)
    return out
