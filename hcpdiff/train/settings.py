"""The `train` section of a config: everything about a run but the model, the data and the plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Generator, Tensor

from hcpdiff.config.ranges import Range
from hcpdiff.diffusion.guidance import needs_negative
from hcpdiff.diffusion.process import Process
from hcpdiff.formats.tensor_files.writing import as_bytes
from hcpdiff.infer.request import Request

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

Optimizer = torch.optim.Optimizer
PositiveInt = Annotated[int, Range(ge=1)]


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """An exponential moving average of the trained weights; previews and exported files use it."""

    decay: Annotated[float, Range(ge=0, lt=1)] = 0.999
    warmup: bool = True  # a shorter average at first: (1 + step) / (10 + step), up to `decay`


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Pictures made during training, always with the same prompts and seeds."""

    every: PositiveInt = 100
    requests: list[Request]
    at_start: bool = True  # before the first step: what the model does without the training


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How a run writes the model whose own layers it trains, at its end."""

    # Of all weights; default: each as it is in memory, where trained layers are float32.
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    shard_size: str | None = None  # the most bytes of a file, such as 5GB; default: a file for each part of the model
    # All weights in model.safetensors, in the layout of the original code, which other programs read; model/ then holds
    # only what goes with it: configs and tokenizers.
    single_file: bool = False

    def __post_init__(self) -> None:
        if self.shard_size is not None:
            as_bytes(self.shard_size)
            if self.single_file:
                raise ValueError("shard_size: a single file has no shards; leave it out, or single_file")


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers of the model itself to train, one entry of `finetune`; a later entry wins where two name one layer."""

    layers: list[str]
    on: str = "denoiser"  # or text_encoders.clip_l, text_encoders, vae ...
    lr: Annotated[float, Range(gt=0)] | None = None  # default: the optimizer's


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train; every count is in optimizer steps."""

    steps: PositiveInt
    accumulate: PositiveInt = 1  # draws of batches per optimizer step
    # A draw is a batch of every dataset, whose losses add up; or of one of them, by the `weight` of each; or of one for
    # a whole epoch of it, then of the next, and around again.
    datasets: Literal["parallel", "mix", "sequential"] = "parallel"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the arithmetic; trained weights stay fp32
    max_grad_norm: Annotated[float, Range(gt=0)] | None = 1.0
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    schedule: Callable[[Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None  # default: constant
    # (model_pred, target, timesteps, process) -> unreduced loss; default: mse. A loss mask multiplies it, and the mean
    # is over all pixels, masked or not.
    loss: Callable[[Tensor, Tensor, Tensor, Process], Tensor] | None = None
    # (timesteps, process) -> weight per sample; default: 1
    weighting: Callable[[Tensor, Process], Tensor] | None = None
    # (count, generator) -> (count,) in [0, 1000]; default: uniform
    timesteps: Callable[[int, Generator], Tensor] | None = None
    # (latents, generator) -> noise; default: gaussian
    noise: Callable[[Tensor, Generator], Tensor] | None = None
    # two branches in training (DreamArtist): a constant, or a function of the timesteps
    guidance: float | Callable[[Tensor], Tensor] | None = None
    gradient_checkpointing: Literal["none", "all", "mlp"] | PositiveInt = "none"  # an integer n: every n-th block
    ema: EmaSettings | None = None
    export: ExportSettings | None = None  # of the model, in a run that has `finetune`; default: a folder
    save_every: PositiveInt | None = None  # default: only at the end
    keep_last: PositiveInt = 3  # older checkpoints are removed
    log_every: PositiveInt = 10
    preview: PreviewSettings | None = None
    loggers: list[Any] = field(default_factory=list)  # besides metrics.jsonl
    callbacks: list[Any] = field(default_factory=list)
    workers: Annotated[int, Range(ge=0)] = 0  # processes that load images

    def __post_init__(self) -> None:
        if self.guidance is not None and not needs_negative(self.guidance):
            raise ValueError("guidance: at 1 the negative prompt counts for nothing; leave it out, or use more")

    def check_export(self, finetune: Sequence[Any]) -> None:
        """Raise if `export` would do nothing."""
        if self.export is not None and not finetune:
            raise ValueError(
                "train.export: no model is written, as only plugins are trained; leave it out, or add finetune"
            )

    def check_datasets(self, datasets: Mapping[str, Dataset]) -> None:
        """Raise if a run on these datasets would train nothing, or come to a step without any."""
        if datasets and not any(dataset.loss_weight for dataset in datasets.values()):
            key = f"data.{next(iter(datasets))}.loss_weight"
            raise ValueError(f"{key}: 0 for every dataset would train nothing; use a number above 0")
        for name, dataset in datasets.items():
            if not all(getattr(source, "has_images", True) for source in getattr(dataset, "sources", ())):
                raise ValueError(
                    f"data.{name}.source: prompts alone cannot be trained on; use a source of images, e.g. "
                    "hcpdiff.data.FolderSource"
                )
        covered = 0
        for dataset in sorted(datasets.values(), key=lambda dataset: dataset.from_step):
            if dataset.from_step > covered:
                break
            covered = max(covered, self.steps if dataset.to_step is None else dataset.to_step)
        if datasets and covered < self.steps:
            raise ValueError(
                f"data: no dataset takes part in step {covered + 1} of {self.steps}; look at from_step and to_step"
            )
