"""The training loop, the same for every method and model."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hcpdiff.data.dataset import Dataset
from hcpdiff.data.streams import Streams
from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.randomness import derive
from hcpdiff.train import caching, checkpoint, exporting
from hcpdiff.train.callbacks import Callback, Metrics, Preview, Progress, Save
from hcpdiff.train.ema import EMA
from hcpdiff.train.objective import Objective
from hcpdiff.train.parameters import parameter_groups, trained_parameters
from hcpdiff.train.settings import LayerGroup, TrainSettings
from hcpdiff.types import Batch

log = logging.getLogger("hcpdiff.train")


class NonFiniteLossError(RuntimeError):
    """The loss is not a number; the message names the samples."""


class Trainer:
    """One training run.

    Args:
        family: the base model; everything in it that `finetune` does not name is frozen.
        datasets: by name; every step takes a batch of each.
        plugins: attached to `family`.
        folder: of the run, for checkpoints, logs, previews and what is trained.
    """

    def __init__(
        self,
        family: ModelFamily,
        datasets: Mapping[str, Dataset],
        settings: TrainSettings,
        *,
        plugins: PluginGroup,
        folder: Path,
        finetune: Sequence[LayerGroup] = (),
        seed: int = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.family, self.plugins, self.settings = family, plugins, settings
        self.folder, self.finetune, self.seed, self.metadata = folder, list(finetune), seed, dict(metadata or {})
        groups = parameter_groups(family, plugins, finetune)
        self.accelerator = _accelerator(settings)
        self.optimizer = settings.optimizer(groups)
        self.schedule = settings.schedule(self.optimizer) if settings.schedule else None
        self.objective = Objective.from_settings(family, plugins, settings, seed=seed)
        self.parameters = trained_parameters(self.objective)
        family.to(self.accelerator.device)
        family.gradient_checkpointing(settings.gradient_checkpointing)
        family.train()
        caching.fill(self.objective, datasets, seed=seed, device=self.accelerator.device, workers=settings.workers)
        self.streams = Streams(
            datasets,
            seed=seed,
            workers=settings.workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self.ema = EMA(self.parameters, settings.ema) if settings.ema else None
        self.metrics = Metrics()
        self.callbacks: list[Callback] = [self.metrics, Progress(), Preview(), Save(), *settings.callbacks]
        self.step = 0  # optimizer steps done
        self.start = 0  # the step that this process began after
        self.stop_signal: int | None = None

    def fit(self) -> None:
        """Train to `settings.steps`; a signal to stop saves a checkpoint first.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came; everything is saved.
            NonFiniteLossError: nothing is changed by the step that it came in.
        """
        with self._signals():
            self._call("on_start")
            batches = self.streams.batches(self.step * self.settings.accumulate)
            try:
                while self.step < self.settings.steps and self.stop_signal is None:
                    started = time.perf_counter()
                    losses, images = self.train_step(batches)
                    self._call("on_step", losses, images, time.perf_counter() - started)
                self._call("on_end")
            finally:
                self._call("on_exit")
        if self.stop_signal is not None:
            raise KeyboardInterrupt(f"stopped after step {self.step}; go on with --resume auto")
        self.export()

    def train_step(self, batches: Iterator[dict[str, Batch]]) -> tuple[dict[str, Tensor], int]:
        """One optimizer step on `accumulate` batches of every dataset: (losses and gradient norm, number of images)."""
        settings, sums, images, checks = self.settings, {}, 0, []
        for micro in range(settings.accumulate):
            parts = list(next(batches).items())
            for i, (name, batch) in enumerate(parts):
                index = (self.step, micro, name, self.accelerator.process_index)
                torch.manual_seed(derive(self.seed, "model", *index))  # dropout
                last = micro == settings.accumulate - 1 and i == len(parts) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.model):
                    per_sample = self.model(batch.to(self.accelerator.device), *index)
                    checks.append(_FiniteCheck(per_sample, name, batch.keys))
                    loss = per_sample.mean()
                    self.accelerator.backward(loss * (self.streams.datasets[name].loss_weight / settings.accumulate))
                sums[name] = sums.get(name, 0) + loss.detach() / settings.accumulate
                images += len(batch) * self.accelerator.num_processes
        for check in checks:
            check.require(self.step)
        if settings.max_grad_norm is not None:
            sums["grad_norm"] = self.accelerator.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return sums, images

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        scaler = self.accelerator.scaler
        return {
            "weights": dict(self.parameters),
            "optimizer": self.optimizer.state_dict(),
            "schedule": _schedule_state(self.schedule),
            "ema": self.ema.shadow if self.ema else None,
            "scaler": scaler.state_dict() if scaler else None,
            "position": {"step": self.step, "seed": self.seed},
        }

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint as if the run had never stopped.

        Raises:
            ValueError: it is damaged, or of a run that trains something else.
        """
        state = checkpoint.load(path)
        checkpoint.check_same(path, state["weights"], self.parameters)
        if (state["ema"] is None) != (self.ema is None):
            raise ValueError(f"{path}: train.ema: the run had {'no' if self.ema else 'an'} average; resume it as it was")
        if state["position"]["seed"] != self.seed:
            raise ValueError(f"{path}: seed: the run had {state['position']['seed']}, not {self.seed}; resume it as it was")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            for name, value in state["ema"].items():
                self.ema.shadow[name].copy_(value)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = self.start = state["position"]["step"]
        log.info("resumed after step %d from %s", self.step, path)

    def save(self) -> Path | None:
        """Write a checkpoint of this step; the main process alone does."""
        self._call("on_save")
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        return checkpoint.save(
            self.folder / "checkpoints", self.step, self.state(), keep_last=self.settings.keep_last
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights if the run has an EMA."""
        with self.ema.applied() if self.ema else nullcontext():
            yield

    def export(self) -> list[Path]:
        """Write what a user takes away: a file per plugin, a folder of the model if its own layers were trained."""
        if not self.accelerator.is_main_process:
            return []
        with self.averaged():
            return exporting.export(self)

    def _call(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM let the current step end; a second one stops at once."""

        def stop(number: int, frame: object) -> None:
            self.stop_signal = number
            signal.signal(number, signal.default_int_handler)

        try:
            before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where signals never arrive
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _FiniteCheck:
    """Looks at losses when the device has them, without making it wait: backward is already queued behind them."""

    def __init__(self, per_sample: Tensor, dataset: str, keys: Sequence[str]) -> None:
        self.dataset, self.keys = dataset, keys
        self.finite = torch.isfinite(per_sample.detach()).to("cpu", non_blocking=True)
        self.event = torch.cuda.Event() if per_sample.is_cuda else None
        if self.event is not None:
            self.event.record()

    def require(self, step: int) -> None:
        if self.event is not None:
            self.event.synchronize()
        if not bool(self.finite.all()):
            names = ", ".join(key for key, finite in zip(self.keys, self.finite.tolist(), strict=True) if not finite)
            raise NonFiniteLossError(
                f"step {step + 1}: the loss of dataset {self.dataset!r} is not finite for {names}; nothing was changed by "
                "this step. Look at these files; if they are fine, lower the learning rate or use precision bf16 or fp32"
            )


def _accelerator(settings: TrainSettings) -> Accelerator:
    precision = "no" if settings.precision == "fp32" else settings.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("train.precision: fp16 needs a CUDA GPU; use bf16 or fp32")
    return Accelerator(mixed_precision=precision)


def _schedule_state(schedule: Any) -> dict[str, Any] | None:
    """Without the functions of a LambdaLR, which the config gives again."""
    if schedule is None:
        return None
    return {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"} | (
        {"lr_lambdas": [None] * len(schedule.lr_lambdas)} if hasattr(schedule, "lr_lambdas") else {}
    )
