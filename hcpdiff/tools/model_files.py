"""The tensors of a model on disk by the names that they have in its family, whatever the layout of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from hcpdiff.formats.names import canonical, of_pipeline
from hcpdiff.formats.single_file import Model
from hcpdiff.formats.single_file.inverse import table_of
from hcpdiff.formats.single_file.layouts import Layout
from hcpdiff.formats.single_file.table import Source
from hcpdiff.formats.tensor_files.entries import Entry
from hcpdiff.formats.tensor_files.opening import INDEX, is_file, open_folder, open_weights, read_json
from hcpdiff.formats.tensor_files.reading import Weights
from hcpdiff.models.hub import local_folder

NEEDED = [INDEX, "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja", "*/*.safetensors"]  # of a repository


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    part: str  # one of the `files` of a model
    source: Source  # its key is that of the file


@dataclass
class ModelFiles:
    """A model's files, opened but not read.

    A tensor's name is `<part>.<path>.<parameter>`, as in `denoiser.down_blocks.0.resnets.0.conv1.weight`; CLIP's have
    `text_model`, whether the file says it or not. A layer's name is that without the parameter.
    """

    path: Path
    files: dict[str, Weights]  # by the folders of parts; of a model in one file, by its name
    places: dict[str, Place]  # by name
    family: str | None  # of `names.ARCHITECTURES`; None: of another kind
    layout: Layout | None = None  # of a single file
    index: dict[str, Any] = field(default_factory=dict)  # of a folder: its model_index.json

    @cached_property
    def users(self) -> dict[tuple[str, str], list[str]]:
        """{(part, key): the names of what lies there}; of q, k and v in one tensor these are three."""
        users: dict[tuple[str, str], list[str]] = {}
        for name, place in self.places.items():
            users.setdefault((place.part, place.source.key), []).append(name)
        return users

    def entry(self, name: str) -> Entry:
        """Dtype and shape of a tensor as its family has it."""
        place = self.places[name]
        stored, rows = self.files[place.part].tensors[place.source.key], place.source.rows
        if rows is not None:
            return Entry(stored.dtype, (rows[1] - rows[0], *stored.shape[1:]))
        changed = {"transposed": stored.shape[::-1], "conv": stored.shape[:2]}.get(place.source.change, stored.shape)
        return Entry(stored.dtype, changed)

    def get(self, name: str) -> Tensor:
        """A tensor as its family has it."""
        place = self.places[name]
        return place.source.take(self.files[place.part].read(place.source.key, rows=place.source.rows))

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
        return _single_file(path)
    root = local_folder(path, allow=NEEDED, ignore=["*.fp16*", "*.non_ema*"])
    index = read_json(root / INDEX)
    pipeline = str(index.get("_class_name"))
    model = ModelFiles(root, {}, {}, _family_of(pipeline), index=index)
    for folder, part in _parts_of(root, pipeline, index).items():
        _add(model, folder, open_folder(root / folder), part)
    return model


def open_like(path: str | Path, base: ModelFiles) -> ModelFiles:
    """Open a model of the base's family, or the weights of one part, as diffusers and transformers have them.

    Raises:
        FileNotFoundError: there is no such file or folder, or weights of it are missing.
        ValueError: it is of no known kind, or of another family.
    """
    path = Path(path).expanduser()
    weights = None
    if is_file(path):
        weights = open_weights(path)
    elif path.is_dir() and not (path / INDEX).is_file():
        weights = open_folder(path)
    part = _part_with(weights, base)
    if weights is None or part is None:
        model = open_model(path)
        if model.family != base.family:
            raise ValueError(f"{path}: this is a model of {model.family}, and the base is one of {base.family}")
        return model
    model = ModelFiles(path, {}, {}, base.family)
    _add(model, path.name, weights, part)
    return model


def _part_with(weights: Weights | None, base: ModelFiles) -> str | None:
    """The part of the base that has tensors of most of these names."""
    keys = [] if weights is None else list(weights.tensors)
    shares: dict[str, float] = {}
    for part in {part_of(name) for name in base.places}:
        own = [key for key in keys if canonical(f"{part}.{key}") in base.places]
        shares[part] = len(own) / max(len(keys), 1)
    best = max(shares, key=lambda part: shares[part], default=None)
    return best if best is not None and shares[best] > 0.5 else None


def _add(model: ModelFiles, name: str, weights: Weights, part: str) -> None:
    model.files[name] = weights
    model.places |= {canonical(f"{part}.{key}"): Place(name, Source(key)) for key in weights.tensors}


def _single_file(path: str | Path) -> ModelFiles:
    opened = Model(path)
    name, layout, shapes = opened.path.name, opened.layout, opened.weights.shapes
    model = ModelFiles(opened.path, {name: opened.weights}, {}, _family_of(layout.pipeline), layout)
    for folder, part in layout.parts.items():
        keys = opened.keys[folder]
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


def _family_of(pipeline: str) -> str | None:
    """The family of a pipeline of diffusers, as LoRA files know it."""
    arch = of_pipeline(pipeline)
    return None if arch is None else arch.name


def _parts_of(folder: Path, pipeline: str, index: Mapping[str, Any]) -> dict[str, str]:
    """{subfolder with weights: part of the family} of a model's folder."""
    known = {"unet": "denoiser", "transformer": "denoiser", "vae": "vae"}
    if (arch := of_pipeline(pipeline)) is not None:
        known |= {name: part for part, name in arch.folders.items()}
    found = [name for name in known if (folder / name / "config.json").is_file()]
    listed = [name for name, value in index.items() if isinstance(value, list) and value[0] and name in known]
    if missing := sorted(set(listed) - set(found)):
        raise FileNotFoundError(f"{folder}: no {missing[0]}/config.json here; is the model downloaded completely?")
    return {name: known[name] for name in found}
