"""A model on disk: the folder of one of diffusers' pipelines, read part by part and written whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hcpdiff.formats.tensor_files.opening import INDEX, is_file, read_json, write_json
from hcpdiff.formats.tensor_files.replacing import replacing_folder
from hcpdiff.models.hub import local_folder
from hcpdiff.models.saving import save_part
from hcpdiff.models.text.loading import quiet
from hcpdiff.randomness import derive

CONFIGS = [INDEX, "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja"]


class Kind(Protocol):
    """How a part is read: a class or a module with these functions."""

    def read(self, folder: Path, dtype: torch.dtype | None) -> nn.Module:
        """With its weights, in their own dtypes if `dtype` is None."""
        ...

    def random(self, folder: Path) -> nn.Module:
        """As torch's random state makes it."""
        ...

    def blank(self, folder: Path) -> nn.Module:
        """With its weights on the meta device, and all else where it belongs."""
        ...

    def skeleton(self, folder: Path) -> nn.Module:
        """On the meta device; perhaps it cannot run."""
        ...


@dataclass(frozen=True)
class Part:
    """One model of a pipeline, e.g. its denoiser."""

    folder: str  # within the pipeline's
    kind: Kind
    tokenizer: str | None = None  # the folder of the tokenizer that belongs to it


class ModelFolder:
    """The parts of one model.

    Args:
        path: folder, or owner/name on the hub; or a single file, see `SingleFile`.
        parts: by their path in the family, e.g. "denoiser" and "text_encoders.clip_l".
        pipelines: what diffusers may call it in model_index.json.
        revision: of the repository.
        skip: parts that are not wanted.
        only_configs: download no weights, for skeletons.
        configs: of a single file: a folder, or owner/name, whose configs and tokenizers are used.

    Raises:
        FileNotFoundError: there is no such folder or repository.
        ValueError: it holds another kind of model.
    """

    def __new__(cls, path: str | Path, *args: Any, **kwargs: Any) -> ModelFolder:
        """Of a single file, the class that reads those."""
        if cls is not ModelFolder or not is_file(path):
            return super().__new__(cls)
        from hcpdiff.models.single_file import SingleFile

        return object.__new__(SingleFile)

    def __init__(
        self,
        path: str | Path,
        parts: Mapping[str, Part],
        *,
        pipelines: Collection[str],
        revision: str | None = None,
        skip: Collection[str] = (),
        only_configs: bool = False,
        configs: str | Path | None = None,
    ) -> None:
        if configs is not None:
            raise ValueError(f"configs: only a single file takes them from elsewhere; {path} is a folder with its own")
        allow = CONFIGS if only_configs else [*CONFIGS, "*/*.safetensors"]
        unread = [f"{name}/*" for part in skip for name in (parts[part].folder, parts[part].tokenizer) if name]
        self.root = local_folder(path, revision=revision, allow=allow, ignore=["*.fp16*", *unread])
        self.index = read_json(self.root / INDEX)
        if (found := self.index.get("_class_name")) not in pipelines:
            raise ValueError(f"{path}: this is a {found}; here a {' or '.join(pipelines)} is needed")
        self.parts = {name: part for name, part in parts.items() if name not in skip}

    def folder(self, part: str) -> Path:
        """Where a part lies."""
        return self.root / self.parts[part].folder

    def read(self, part: str, dtype: torch.dtype | None, *, seed: int | None = None) -> nn.Module:
        """A part with its weights, or with random ones of `seed`."""
        kind = self.parts[part].kind
        if seed is None:
            return kind.read(self.folder(part), dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init", part.rpartition(".")[2]))
            return kind.random(self.folder(part)).to(dtype)

    def reader(self, from_scratch: Collection[str], *, seed: int) -> Callable[[str, torch.dtype | None], Any]:
        """`read`, where the parts that start from scratch get random weights."""
        known = ("denoiser", "text_encoders", "vae")
        if unknown := sorted(set(from_scratch) - set(known)):
            raise ValueError(f"from_scratch: {unknown[0]!r} is no part of the model; use any of {', '.join(known)}")
        return lambda part, dtype: self.read(part, dtype, seed=seed if part.partition(".")[0] in from_scratch else None)

    def tokenizer(self, part: str) -> Any:
        """The tokenizer of a text encoder."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.root / str(self.parts[part].tokenizer))

    def scheduler(self, default: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the stock scheduler."""
        file = self.root / "scheduler" / "scheduler_config.json"
        return read_json(file) if file.exists() else dict(default)

    def check_prediction(self) -> None:
        """Log what is assumed where nothing says what the denoiser predicts."""

    def skeleton(self, part: str) -> nn.Module:
        """A part by its path in the family, or "text_encoders" for all of them, on the meta device."""
        if part == "text_encoders":
            return nn.ModuleDict({name: self.skeleton(f"{part}.{name}") for name in self.text_encoders})
        if part not in self.parts:
            known = ["denoiser", "vae", "text_encoders", *(f"text_encoders.{name}" for name in self.text_encoders)]
            raise ValueError(f"{part!r} is no part of this model; its parts are {', '.join(known)}")
        return self.parts[part].kind.skeleton(self.folder(part))

    @property
    def text_encoders(self) -> list[str]:
        """Their names."""
        return [path.removeprefix("text_encoders.") for path in self.parts if path.startswith("text_encoders.")]


def write(
    folder: Path,
    pipeline: str,
    parts: Mapping[str, Any],
    *,
    empty: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write a folder that diffusers reads.

    Args:
        pipeline: the name of its class.
        parts: {subfolder: a model; or a tokenizer; or a dict, the settings of a scheduler}.
        empty: parts that the class has and this model does not.
        settings: of the pipeline itself.
        options: how weights are written, see `saving.save_part`.
    """
    index: dict[str, Any] = {"_class_name": pipeline, **(settings or {}), **{name: [None, None] for name in empty}}
    with replacing_folder(folder) as new, quiet():
        for name, part in parts.items():
            if isinstance(part, Mapping):
                write_json(new / name / "scheduler_config.json", part)
                index[name] = ["diffusers", part["_class_name"]]
                continue
            if isinstance(part, nn.Module):
                save_part(part, new / name, **options)
            else:
                part.save_pretrained(new / name)
            library = "transformers" if name.startswith(("text_encoder", "tokenizer")) else "diffusers"
            index[name] = [library, getattr(part, "diffusers_class", type(part).__name__)]
        write_json(new / INDEX, index)
