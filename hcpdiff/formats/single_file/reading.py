"""One model in one file: which parts it holds, and their tensors under diffusers' names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.formats.single_file.layouts import Layout, recognise
from hcpdiff.formats.single_file.opening import open_weights
from hcpdiff.formats.single_file.table import Source, Table, original_shapes


class Model:
    """A single file whose tensors are converted when they are asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors or ckpt file, or of no known model.
    """

    def __init__(self, path: str | Path) -> None:
        self._weights = open_weights(path)
        self.path = self._weights.path
        self.layout: Layout = recognise(self._weights.shapes, self.path)
        self._keys = {name: part.keys(self._weights.shapes) for name, part in self.layout.parts.items()}

    def holds(self, part: str) -> bool:
        """Whether the weights of `part`, by its folder in diffusers' layout, are in the file."""
        return bool(self._keys[part])

    @property
    def scheduler(self) -> dict[str, Any]:
        """What the file says of its scheduler, over the family's default."""
        marks = {"prediction_type": "v_prediction"} if "v_pred" in self._weights.shapes else {}
        zero = {"rescale_betas_zero_snr": True} if "ztsnr" in self._weights.shapes else {}
        return {**self.layout.scheduler, **marks, **zero}

    def load(self, part: str, module: nn.Module, dtype: torch.dtype, *, in_float32: Collection[str] = ()) -> None:
        """Give `module`, on the meta device, the weights of `part`: each is read, converted and kept in `dtype`.

        Args:
            in_float32: names of layers that keep full precision.

        Raises:
            ValueError: names or shapes differ.
        """
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        table, keys = dict(self.layout.parts[part].table(shapes)), self._keys[part]
        unprojected = table.get("text_projection.weight")
        identity = unprojected if unprojected and unprojected.key not in keys and self._lacks_projection(part) else None
        if identity:
            del table["text_projection.weight"]
        self._check(part, table, {key: shapes[key] for key in table})
        done: dict[Source, Tensor] = {}  # T5 has one embedding under two names
        for key, source in table.items():
            if source not in done:
                kept = torch.float32 if set(in_float32) & set(key.split(".")) else dtype
                tensor = source.take(self._weights.get(keys[source.key]))
                done[source] = tensor.to(kept, copy=True, memory_format=torch.contiguous_format)
        state = {key: done[source] for key, source in table.items()}
        if identity:
            state["text_projection.weight"] = torch.eye(*shapes["text_projection.weight"], dtype=dtype)
        module.load_state_dict(state, assign=True)

    def _lacks_projection(self, part: str) -> bool:
        """SD3's files leave out the projection of its first CLIP, whose pooled feature their code does not project."""
        return self.layout.pipeline == "StableDiffusion3Pipeline" and part == "text_encoder"

    def _check(self, part: str, table: Table, shapes: Mapping[str, tuple[int, ...]]) -> None:
        expected, keys = original_shapes(table, shapes), self._keys[part]
        where = f"{self.path}: {part} is not that of {self.layout.title}, or of the configs in use: "
        missing, unknown = sorted(expected.keys() - keys.keys()), sorted(keys[k] for k in keys.keys() - expected.keys())
        if missing or unknown:
            raise ValueError(f"{where}{_some('missing', missing)}{_some('unknown', unknown)}is the file complete?")
        for key, shape in expected.items():
            found = self._weights.shapes[keys[key]]
            matrix = shape[2:] == (1, 1) and found == shape[:2] and part == "vae"
            if found != shape and not matrix:
                raise ValueError(f"{where}{keys[key]} has shape {found}; expected {shape}")


def _some(what: str, names: list[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}); " if names else ""
