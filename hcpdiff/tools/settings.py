"""What a config says of a merge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from hcpdiff.config.ranges import ExistingPath
from hcpdiff.formats.tensor_files.writing import as_bytes

Dtype = Literal["float32", "bfloat16", "float16"]
Layers = list[str] | dict[str, float]


@dataclass(frozen=True, kw_only=True)
class MergePart:
    """Another model of the same family, or a part of one, that is mixed in."""

    path: Annotated[str, ExistingPath()]  # its folder, its single file, or the weights of one part of it
    strength: float  # the share of this model
    layers: Layers | None = None  # as for adapters; elsewhere the base stays what it is

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class MergeAdapter:
    """A file whose change is added to the model."""

    path: Annotated[str, ExistingPath()]  # any LoRA file, or a folder of PEFT
    strength: float = 1.0  # 1 is as trained
    layers: Layers | None = None  # selectors: a list, for these layers alone; or {selector: strength}, where it differs

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """The `merge` section: base * strength + the sum of all parts * their strengths, and then the adapters."""

    base: str  # a folder in diffusers' layout, owner/name on the hub, or a single file in the original layout
    strength: float | None = None  # of the base, where parts are mixed in; null: what they leave of 1
    parts: dict[str, MergePart] = field(default_factory=dict)  # models to mix in, each with a name of your choice
    adapters: dict[str, MergeAdapter] = field(default_factory=dict)  # LoRAs to add, each with a name of your choice
    out: str  # a new folder, or a new .safetensors file if the base is a file
    dtype: Dtype | None = None  # of all weights; null: each keeps its own
    shard_size: str | int = "10GB"  # of a folder: a part of more bytes is written in several files

    def __post_init__(self) -> None:
        as_bytes(self.shard_size)
        if not self.parts and not self.adapters:
            raise ValueError("parts: there are none, and no adapters; a merge would change nothing")
        if self.strength is not None and not self.parts:
            raise ValueError("strength: it is the base's share beside parts, and there are none; remove it")
        if self.dtype is not None and self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype: {self.dtype!r} is not written; use {', '.join(get_args(Dtype))}")


def _check(entry: MergePart | MergeAdapter) -> None:
    if entry.layers is not None and not entry.layers:
        raise ValueError("layers: there is none; name some, or leave it out for all layers")
    differing = entry.layers.values() if isinstance(entry.layers, dict) else ()
    if entry.strength == 0 and not any(differing):
        raise ValueError("strength: 0 would change nothing; remove this entry")
