"""A model in one file: its configs come with this package or from a folder, its tokenizers from a folder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hcpdiff.formats.single_file import Model
from hcpdiff.formats.tensor_files.opening import INDEX, present, read_json
from hcpdiff.models import weights
from hcpdiff.models.folder import CONFIGS, ModelFolder, Part
from hcpdiff.models.hub import local_folder

log = logging.getLogger(__name__)


class SingleFile(ModelFolder):
    """What ModelFolder is for a folder.

    A folder in diffusers' layout goes with it: its configs are used where it has them, and so are its tokenizers, its
    scheduler, and its weights of parts that the file does not hold.

    Args:
        path: the .safetensors or .ckpt file.
        configs: this folder, or owner/name on the hub; None takes the one beside the file that is named like it
            without suffix, if there is one.
        revision: of `configs` on the hub.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds another kind of model, or is broken.
    """

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
        self.model = Model(path)
        layout = self.model.layout
        if layout.pipeline not in pipelines:
            raise ValueError(f"{path}: this is {layout.title}; here a {' or '.join(pipelines)} is needed")
        self.parts = {name: part for name, part in parts.items() if name not in skip}
        self.root = self._configs_folder(configs, revision, only_configs)
        index = self.root / INDEX
        self.index = read_json(index) if index.exists() else {"_class_name": layout.pipeline}
        if (found := self.index.get("_class_name")) not in pipelines:
            raise ValueError(f"configs: {self.root} is a {found}; here a {' or '.join(pipelines)} is needed")

    def folder(self, part: str) -> Path:
        """Where a part's config lies; no folder for a part that is nowhere."""
        name = self.parts[part].folder
        own = self.root / name
        if (own / "config.json").exists() and (self.model.holds(name) or present(own)):
            return own
        # A T5 is the one part that a model can do without.
        if not self.model.holds(name) and part == "text_encoders.t5" and self.model.layout.name.startswith("sd3"):
            return self.model.path / name
        return own if (own / "config.json").exists() else self.model.layout.configs / name

    def read(self, part: str, dtype: torch.dtype | None, *, seed: int | None = None) -> nn.Module:
        name, kind, folder = self.parts[part].folder, self.parts[part].kind, self.folder(part)
        if seed is not None:
            return super().read(part, dtype, seed=seed)
        if not self.model.holds(name):
            if present(folder):
                return kind.read(folder, dtype)
            prefix = self.model.layout.parts[name].prefixes[0]
            raise FileNotFoundError(
                f"{self.model.path}: no {name} in this file, whose keys would start with {prefix}; {self._advice(name)}"
            )
        module = kind.blank(folder)
        kept = weights.in_float32(module, dtype)
        self.model.load(name, module, dtype, in_float32=kept, device=weights.device())
        return weights.finished(module, dtype)

    def tokenizer(self, part: str) -> Any:
        name = str(self.parts[part].tokenizer)
        if not (self.root / name).is_dir():
            raise FileNotFoundError(
                f"{self.model.path}: a single file holds no tokenizers, and there is no {name}/; {self._advice(name)}"
            )
        return super().tokenizer(part)

    def scheduler(self, default: Mapping[str, Any]) -> dict[str, Any]:
        if (self.root / "scheduler" / "scheduler_config.json").exists():
            return super().scheduler(default)
        return {**default, **self.model.scheduler}

    def check_prediction(self) -> None:
        if self.model.layout.name == "sd2" and not (self.root / "scheduler" / "scheduler_config.json").exists():
            log.warning(
                "%s: files of Stable Diffusion 2 do not say what the model predicts; taken as v_prediction, as 2.1 at "
                "768 pixels does; for a base model of 512 pixels set model.prediction: epsilon, and v_prediction if "
                "this is right",
                self.model.path,
            )

    def _advice(self, name: str) -> str:
        beside = self.model.path.with_suffix("")
        return f"set configs to a folder in diffusers' layout that has {name}/, or put such a folder at {beside}"

    def _configs_folder(self, configs: str | Path | None, revision: str | None, only_configs: bool) -> Path:
        if configs is None:
            if revision is not None:
                raise ValueError(f"revision: {self.model.path} is a file and has none; leave it out")
            return self.model.path.with_suffix("")
        missing = [part.folder for part in self.parts.values() if not self.model.holds(part.folder)]
        tensors = [] if only_configs else [f"{name}/*.safetensors" for name in missing]
        return local_folder(configs, revision=revision, allow=[*CONFIGS, *tensors], ignore=["*.fp16*"])
