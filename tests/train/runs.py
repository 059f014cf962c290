"""Small runs: a tiny random SD3, a handful of drawn pictures, a few steps."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.data import Dataset, FixedBucket, RatioBucket, Record
from hcpdiff.models.sd3.family import SD3
from hcpdiff.plugins import LoRA, PluginSpec, attach
from hcpdiff.train.settings import TrainSettings
from hcpdiff.train.trainer import Trainer
from hcpdiff.train.words import WordSpec
from tests.models.tiny import tiny_pipeline

SIZES = [(24, 24), (24, 36), (36, 24), (30, 30), (28, 40), (40, 28), (24, 26)]


class Pictures:
    """A source of smooth random pictures of different sizes; a mask keeps their left half."""

    def __init__(self, count: int = 7, *, masks: bool = False, seed: int = 0) -> None:
        self.count, self.masks, self.seed = count, masks, seed

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"picture-{index}"

    def size(self, index: int) -> tuple[int, int]:
        return SIZES[index % len(SIZES)]

    def captions(self, index: int) -> Sequence[str]:
        return [f"picture {'abcdefghijklmnop'[index % 16]}"]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        height, width = self.size(index)
        coarse = np.random.default_rng((self.seed, index)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.float32) if self.masks else None
        if mask is not None:
            mask[:, : width // 2] = 1
        return Record(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), mask)


@cache
def _family() -> SD3:
    with tempfile.TemporaryDirectory() as folder:
        tiny_pipeline().save_pretrained(folder)
        return SD3.from_pretrained(folder, t5_tokens=4).requires_grad_(False)


def family() -> SD3:
    """A tiny SD3 with random weights: pictures of 24 x 24 pixels, latents of 12 x 12."""
    return copy.deepcopy(_family())


def pictures(count: int = 7, *, batch_size: int = 2, masks: bool = False, seed: int = 0, **options: Any) -> Dataset:
    bucket = options.pop("bucket", FixedBucket(24))
    return Dataset(Pictures(count, masks=masks, seed=seed), bucket, batch_size=batch_size, **options)


def ratios() -> RatioBucket:
    return RatioBucket(576, num_buckets=2)


def lora(*, lr: float | None = 1e-2, on: str = "denoiser", **options: Any) -> PluginSpec:
    layers = {"denoiser": r"re:transformer_blocks\..*attn\.to_[qkv]"}.get(on, r"re:.*q_proj")
    spec = {key: options.pop(key) for key in ("branch", "train", "overrides") if key in options}
    return PluginSpec(LoRA, on=on, layers=[layers], lr=lr, options={"rank": 2} | options, **spec)


def adamw(groups: Any, *, lr: float = 1e-3, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, **settings)


def make(
    folder: Path,
    *,
    plugins: Mapping[str, PluginSpec] | None = None,
    data: Mapping[str, Dataset] | None = None,
    words: Mapping[str, WordSpec] | None = None,
    finetune: Sequence[Any] = (),
    seed: int = 0,
    model: SD3 | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer of a LoRA on the tiny model, unless told otherwise."""
    model = family() if model is None else model
    specs = ({} if finetune or words else {"style": lora()}) if plugins is None else plugins
    given = {"steps": 4, "optimizer": adamw, "log_every": 1} | settings
    return Trainer(
        model,
        {"main": pictures()} if data is None else data,
        TrainSettings(**given),
        plugins=attach(model, specs, seed=seed),
        folder=folder,
        words=words,
        finetune=finetune,
        seed=seed,
    )


def tensors(value: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state, by its path."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return {name: t for key, part in items for name, t in tensors(part, f"{path}/{key}").items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocked = {"images_per_second", "data_wait"}
    return [{key: value for key, value in line.items() if key not in clocked} for line in lines]
