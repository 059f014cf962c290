"""The tensors of a model on disk by the names that they have in its family, whatever the layout of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hcpdiff.formats.lora_files import listing
from hcpdiff.formats.names import ARCHITECTURES, canonical
from hcpdiff.formats.single_file.inverse import table_of
from hcpdiff.formats.single_file.layouts import Layout, recognise
from hcpdiff.formats.single_file.opening import is_file, open_weights
from hcpdiff.formats.single_file.table import Source
from hcpdiff.formats.tensor_files import Entry, TensorFile
from hcpdiff.models.hub import local_folder

WEIGHTS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call them
INDEX = "model_index.json"
NEEDED = [INDEX, "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja", "*/*.safetensors"]  # of a repository
# {how the name of a pipeline of diffusers begins: family}, the longest first.
_FAMILIES = {"StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "StableDiffusion": "sd", "Flux": "flux"}
_OTHERS = {  # {pipeline: {folder: part}} of families without LoRA files of other programs
    "PixArtSigmaPipeline": {"text_encoder": "text_encoders.t5"},
    "ZImagePipeline": {"text_encoder": "text_encoders.qwen"},
}


class Tensors(Protocol):
    """One file to read from."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]

    def get(self, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or these rows of it, which may be written to."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which file of the model, and where in it."""

    file: str  # relative to the model's folder
    source: Source  # its key is that of the file


@dataclass
class ModelFiles:
    """A model's files, opened but not read.

    A tensor's name is `<part>.<path>.<parameter>`, as in `denoiser.down_blocks.0.resnets.0.conv1.weight`; CLIP's have
    `text_model`, whether the file says it or not. A layer's name is that without the parameter.
    """

    path: Path
    files: dict[str, Tensors]  # by their paths in the model's folder
    places: dict[str, Place]  # by name
    family: str | None  # of `names.ARCHITECTURES`; None: of another kind
    layout: Layout | None = None  # of a single file
    parts: dict[str, str] = field(default_factory=dict)  # of a folder: {subfolder: part}
    index: dict[str, Any] = field(default_factory=dict)  # of a folder: its model_index.json

    @cached_property
    def users(self) -> dict[tuple[str, str], list[str]]:
        """{(file, key): the names of what lies there}; of q, k and v in one tensor these are three."""
        users: dict[tuple[str, str], list[str]] = {}
        for name, place in self.places.items():
            users.setdefault((place.file, place.source.key), []).append(name)
        return users

    def entry(self, name: str) -> Entry:
        """Dtype and shape of a tensor as its family has it."""
        place = self.places[name]
        stored, rows = self.files[place.file].entries[place.source.key], place.source.rows
        if rows is not None:
            return Entry(stored.dtype, (rows[1] - rows[0], *stored.shape[1:]))
        changed = {"transposed": stored.shape[::-1], "conv": stored.shape[:2]}.get(place.source.change, stored.shape)
        return Entry(stored.dtype, changed)

    def get(self, name: str) -> Tensor:
        """A tensor as its family has it."""
        place = self.places[name]
        stored = self.files[place.file].get(place.source.key, place.source.rows)
        return replace(place.source, rows=None).take(stored)

    def layers(self) -> list[str]:
        """The layers that hold parameters."""
        return list(dict.fromkeys(layer_of(name) for name in self.places))


def open_model(path: str | Path) -> ModelFiles:
    """Open a whole model.

    Args:
        path: a folder in diffusers' layout (or owner/name on the hub), or a single file in the layout of the original
            code.

    Raises:
        FileNotFoundError: there is no such file or folder, or weights of it are missing.
        ValueError: it is no whole model, or of no known kind.
    """
    if is_file(path):
        return _single_file(open_tensors(path))
    root = local_folder(path, allow=NEEDED, ignore=["*.fp16*", "*.non_ema*"])
    index = read_index(root)
    pipeline = str(index.get("_class_name"))
    parts = parts_of(root, pipeline, index)
    model = ModelFiles(root, {}, {}, family_of(pipeline), parts=parts, index=index)
    for folder, part in parts.items():
        for file in weights_of(root / folder):
            _add(model, f"{folder}/{file.name}", TensorFile(file), part)
    return model


def open_like(path: str | Path, base: ModelFiles) -> ModelFiles:
    """Open a model of the base's family, or the weights of one part, as diffusers and transformers have them.

    Raises:
        FileNotFoundError: there is no such file or folder, or weights of it are missing.
        ValueError: it is of no known kind, or of another family.
    """
    path = Path(path).expanduser()
    if path.is_dir() and not (path / INDEX).is_file():
        files = [TensorFile(file) for file in weights_of(path)]
    elif is_file(path):
        files = [open_tensors(path)]
    else:
        files = []
    part = _part_with({key for file in files for key in file.entries}, base)
    if part is None:
        model = _single_file(files[0]) if is_file(path) else open_model(path)
        if model.family != base.family:
            raise ValueError(f"{path}: this is a model of {model.family}, and the base is one of {base.family}")
        return model
    model = ModelFiles(path, {}, {}, base.family)
    for file in files:
        _add(model, file.path.name, file, part)
    return model


def _part_with(keys: set[str], base: ModelFiles) -> str | None:
    """The part of the base that has tensors of most of these names."""
    shares: dict[str, float] = {}
    for part in {part_of(name) for name in base.places}:
        own = [key for key in keys if canonical(f"{part}.{key}") in base.places]
        shares[part] = len(own) / max(len(keys), 1)
    best = max(shares, key=lambda part: shares[part], default=None)
    return best if best is not None and shares[best] > 0.5 else None


def _add(model: ModelFiles, name: str, stored: Tensors, part: str) -> None:
    model.files[name] = stored
    model.places |= {canonical(f"{part}.{key}"): Place(name, Source(key)) for key in stored.entries}


def _single_file(stored: Tensors) -> ModelFiles:
    name, shapes = stored.path.name, {key: entry.shape for key, entry in stored.entries.items()}
    layout = recognise(shapes, stored.path)
    model = ModelFiles(stored.path, {name: stored}, {}, family_of(layout.pipeline), layout)
    for part in layout.parts.values():
        keys = part.keys(shapes)
        for own, source in table_of(part, {key: shapes[full] for key, full in keys.items()}).items():
            model.places[canonical(f"{part.path}.{own}")] = Place(name, replace(source, key=keys[source.key]))
    return model


def layer_of(name: str) -> str:
    """The layer of a tensor."""
    return name.rpartition(".")[0]


def part_of(name: str) -> str:
    """The part of the family that a tensor or layer is in: "denoiser", "text_encoders.clip_l"."""
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "text_encoders" else first


def family_of(pipeline: str) -> str | None:
    """The family of a pipeline of diffusers, as LoRA files know it."""
    return next((family for start, family in _FAMILIES.items() if pipeline.startswith(start)), None)


def parts_of(folder: Path, pipeline: str, index: Mapping[str, Any]) -> dict[str, str]:
    """{subfolder with weights: part of the family} of a model's folder."""
    family = family_of(pipeline)
    known = {"unet": "denoiser", "transformer": "denoiser", "vae": "vae", **_OTHERS.get(pipeline, {})}
    if family is not None:
        known |= {name: part for part, name in ARCHITECTURES[family].folders.items()}
    found = [name for name in known if (folder / name / "config.json").is_file()]
    listed = [name for name, value in index.items() if isinstance(value, list) and value[0] and name in known]
    if missing := sorted(set(listed) - set(found)):
        raise FileNotFoundError(f"{folder}: no {missing[0]}/config.json here; is the model downloaded completely?")
    return {name: known[name] for name in found}


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a model's folder."""
    file = folder / INDEX
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no {INDEX} here; is this the folder of a model in diffusers' layout?")
    return json.loads(file.read_text(encoding="utf-8"))


def weights_of(folder: Path) -> list[Path]:
    """The files with the weights of one part.

    Raises:
        FileNotFoundError: there are none, or one is missing.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / name for name in names]
        else:
            files = [folder / f"{name}.safetensors"]
        if missing := [file.name for file in files if not file.is_file()]:
            if index.is_file():
                raise FileNotFoundError(f"{folder}: no {missing[0]} here; is the model downloaded completely?")
            continue
        return files
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".ckpt"))
    found = f", but {listing(others, 3)}, which is not read" if others else ""
    raise FileNotFoundError(f"{folder}: no {' or '.join(f'{name}.safetensors' for name in WEIGHTS)} here{found}")


def open_tensors(path: str | Path) -> Tensors:
    """A safetensors file, or a pickled one, of which only plain tensors are read."""
    return TensorFile(path) if Path(path).suffix == ".safetensors" else _Checkpoint(path)


class _Checkpoint:
    def __init__(self, path: str | Path) -> None:
        self._weights = open_weights(path)
        self.path = self._weights.path
        tensors = {key: self._weights.get(key) for key in self._weights.shapes}  # mapped from the file
        self.entries = {key: Entry(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
        self.metadata: dict[str, str] = {}

    def get(self, key: str, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self._weights.get(key)
        return (tensor if rows is None else tensor[slice(*rows)]).clone()
