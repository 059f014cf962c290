"""One model in one file: which parts it holds, and their tensors under diffusers' names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.formats.single_file.layouts import Layout, recognise
from hcpdiff.formats.single_file.table import Shapes, Source, Table, original_shapes
from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.formats.tensor_files.fitting import check
from hcpdiff.formats.tensor_files.opening import open_weights
from hcpdiff.formats.tensor_files.reading import read_all

# Empty tensors by which files of XL say what their scheduler must know.
MARKS = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}


class Model:
    """A single file whose tensors are converted when they are asked for.

    It has a `layout`, its `weights`, and by part the `keys`: {key without prefix: in the file}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors or ckpt file, or of no known model.
    """

    def __init__(self, path: str | Path) -> None:
        self.weights = open_weights(path)
        self.path = Path(path).expanduser()
        self.layout: Layout = recognise(self.weights.shapes, self.path)
        self.keys = {name: part.keys(self.weights.shapes) for name, part in self.layout.parts.items()}

    def holds(self, part: str) -> bool:
        """Whether the weights of `part`, by its folder in diffusers' layout, are in the file."""
        return bool(self.keys[part])

    @property
    def scheduler(self) -> dict[str, Any]:
        """What the file says of its scheduler, over the family's default."""
        said = {name: value for mark, (name, value) in MARKS.items() if mark in self.weights.tensors}
        return {**self.layout.scheduler, **said}

    def tensors(self) -> dict[str, Given]:
        """All that belongs to the parts of the model, as it is in the file."""
        stored = self.weights.tensors
        keys = [*(key for part in self.keys.values() for key in part.values()), *(k for k in MARKS if k in stored)]
        return {key: Given(stored[key].dtype, stored[key].shape, partial(self.weights.read, key)) for key in keys}

    def load(
        self,
        part: str,
        module: nn.Module,
        dtype: torch.dtype | None,
        *,
        in_float32: Collection[str] = (),
        device: torch.device | None = None,
    ) -> None:
        """Give `module`, whose weights are on the meta device, those of `part`: each is read and converted.

        Args:
            dtype: None leaves each as it is.
            in_float32: names of layers that keep full precision.
            device: None is the CPU.

        Raises:
            ValueError: names, shapes or dtypes do not fit, or the file has become shorter.
        """
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        table, keys = dict(self.layout.parts[part].table(shapes)), self.keys[part]
        unprojected = table.get("text_projection.weight")
        identity = unprojected if unprojected and unprojected.key not in keys and self._lacks_projection(part) else None
        if identity:
            del table["text_projection.weight"]
        self._check(part, table, shapes)

        def read(key: str, source: Source) -> Tensor:
            kept = torch.float32 if set(in_float32) & set(key.split(".")) else dtype
            tensor = self.weights.read(keys[source.key], kept, rows=source.rows)
            return source.take(tensor).contiguous().to(device)

        names = {source: key for key, source in table.items()}  # T5 has one embedding under two names
        done = read_all({source: partial(read, key, source) for source, key in self._by_place(part, names)})
        state = {key: done[source] for key, source in table.items()}
        if identity:
            some = next(iter(state.values()))
            state["text_projection.weight"] = torch.eye(*shapes["text_projection.weight"]).to(some)
        module.load_state_dict(state, assign=True)

    def _by_place(self, part: str, sources: Mapping[Source, str]) -> list[tuple[Source, str]]:
        """In the order in which they lie in the file, which a disk reads faster."""
        stored, keys = self.weights.tensors, self.keys[part]
        return sorted(sources.items(), key=lambda item: (stored[keys[item[0].key]].start, item[0].rows or (0, 0)))

    def _lacks_projection(self, part: str) -> bool:
        """SD3's files leave out the projection of its first CLIP, whose pooled feature their code does not project."""
        return self.layout.pipeline == "StableDiffusion3Pipeline" and part == "text_encoder"

    def _check(self, part: str, table: Table, shapes: Shapes) -> None:
        found = {key: self.weights.tensors[file] for key, file in self.keys[part].items()}
        expected = original_shapes(table, shapes)
        for key, shape in expected.items():  # some write the 1 x 1 convolutions of a VAE as matrices
            if part == "vae" and shape[2:] == (1, 1) and key in found and found[key].shape == shape[:2]:
                expected[key] = shape[:2]
        check(
            {self.keys[part].get(key, key): shape for key, shape in expected.items()},
            {self.keys[part][key]: stored for key, stored in found.items()},
            where=f"{self.path}: {part} is not that of {self.layout.title}, or of the configs in use",
            ask="is the file complete?",
            by="expected",
        )
