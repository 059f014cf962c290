"""The training loop, the same for every method and model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hcpdiff.data.streams import Datasets, Streams
from hcpdiff.infer.generation import check_size
from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.randomness import derive
from hcpdiff.train import caching, checkpoint, compatible, exporting
from hcpdiff.train.callbacks import Callback, Metrics, Preview, Progress, Save
from hcpdiff.train.ema import EMA
from hcpdiff.train.finite import FiniteCheck, NonFiniteLossError, check_weights
from hcpdiff.train.idle import Idle
from hcpdiff.train.manifest import Manifest
from hcpdiff.train.objective import Objective
from hcpdiff.train.parameters import parameter_groups, trained_parameters
from hcpdiff.train.precision import make_accelerator
from hcpdiff.train.schedules import restore, state_of
from hcpdiff.train.settings import About, LayerGroup, TrainSettings
from hcpdiff.train.stopping import StopSignals
from hcpdiff.train.words import WordSpec, attach_words, check_names, word_groups
from hcpdiff.types import Batch

__all__ = ["NonFiniteLossError", "Trainer"]

log = logging.getLogger("hcpdiff.train")


class Trainer:
    """One training run.

    Args:
        family: the base model; everything in it that `finetune` does not name is frozen.
        datasets: by name.
        plugins: attached to `family`.
        words: by name; they are made here, and attached to `family`.
        folder: of the run, for checkpoints, logs, previews and what is trained.
        metadata: more for the header of the files that a user takes away.
        about: what these say to people.
        config: what all of this was made from, as YAML: a resumed run says what has changed in it.
        discard_unused: free the memory of the VAE and the text encoders if the run does not need them, as all that they
            give is cached; `family` is of no further use then. Else they wait on the CPU.

    Raises:
        ValueError: a setting does not fit the model or this machine, or nothing is trained.
    """

    def __init__(
        self,
        family: ModelFamily,
        datasets: Datasets,
        settings: TrainSettings,
        *,
        plugins: PluginGroup,
        folder: Path,
        words: Mapping[str, WordSpec] | None = None,
        finetune: Sequence[LayerGroup] = (),
        seed: int = 0,
        metadata: Mapping[str, str] | None = None,
        about: About | None = None,
        config: str | None = None,
        discard_unused: bool = False,
    ) -> None:
        self.family, self.datasets, self.settings, self.plugins = family, dict(datasets), settings, plugins
        self.folder, self.finetune, self.seed, self.metadata = folder, list(finetune), seed, dict(metadata or {})
        self.config, self.about, self.started = config, about or About(), time.time()
        for i, request in enumerate(settings.preview.requests if settings.preview else ()):
            check_size(family, request.size, where=f"train.preview.requests[{i}].size")
        settings.check_export(finetune)
        exporting.check(family, settings, plugins=plugins.specs, words=words or {})
        self.accelerator = make_accelerator(settings.precision)
        check_names(words or {}, plugins.specs)
        self.words = attach_words(family, words or {}, seed=seed)
        groups = parameter_groups(family, plugins, finetune, word_groups(self.words, words or {}))
        self.objective = Objective.from_settings(family, plugins, settings, seed=seed, words=self.words)
        self.objective.to(self.accelerator.device).train()
        family.gradient_checkpointing(settings.gradient_checkpointing)
        self.parameters = trained_parameters(self.objective)
        optimizer = settings.optimizer(groups)
        self.described = compatible.describe(optimizer)
        self.schedule = settings.schedule(optimizer) if settings.schedule else None
        _check_loop_fits(optimizer, self.schedule)
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.ema = EMA(self.parameters, settings.ema) if settings.ema else None
        needed = bool(settings.preview or settings.callbacks or finetune)  # for pictures, or for the model's folder
        self.idle = Idle(family, self.accelerator.device, keep=needed or not discard_unused)
        self.metrics = Metrics()
        self.callbacks: list[Callback] = [self.metrics, Progress(), Save(), Preview(), Manifest(), *settings.callbacks]
        self.step = 0  # optimizer steps done
        self.rates: dict[str, float] = {}  # learning rates of the last step, by parameter group
        self.shown = dict.fromkeys(self.datasets, 0)  # batches of each dataset so far
        self.epoch = 0.0  # how often every image was shown at least
        self.waited = 0.0  # seconds that the last step waited for its batches
        self.stop = StopSignals()

    def fit(self) -> None:
        """Train to `settings.steps`; a signal to stop saves a checkpoint first.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came; everything is saved.
            NonFiniteLossError: nothing is changed by the step that it came in.
        """
        if self.accelerator.is_main_process:
            checkpoint.set_aside(self.folder / "checkpoints", after=self.step)
        streams, stopped = self.load_data(), False
        self.shown = streams.shown(self.step * self.settings.accumulate)
        with self.stop, closing(streams.batches(self.step * self.settings.accumulate)) as batches:
            try:
                self._call("on_start")
                while self.step < self.settings.steps and not stopped:
                    started = time.perf_counter()
                    losses, images = self.train_step(batches)
                    self.epoch = streams.epoch(self.shown)
                    self._call("on_step", losses, images, time.perf_counter() - started)
                    stopped = self.stop(self.accelerator, agree=self.step % self.settings.log_every == 0)
                self._call("on_end")
            finally:
                self._call("on_exit")
        if self.step < self.settings.steps:
            raise KeyboardInterrupt(f"stopped after step {self.step}; go on with --resume auto")
        self.export()

    def load_data(self) -> Streams:
        """Look over the datasets and fill the caches that they ask for: the batches of the run."""
        quiet, team = not self.accelerator.is_main_process, caching.team_of(self.accelerator)
        workers = self.settings.workers
        caching.fill(self.objective, self.datasets, seed=self.seed, workers=workers, quiet=quiet, team=team)
        self.idle.release(caching.unused_parts(self.datasets, self.plugins))
        return Streams(
            self.datasets,
            mode=self.settings.datasets,
            seed=self.seed,
            workers=self.settings.workers,
            accumulate=self.settings.accumulate,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def train_step(self, batches: Iterator[dict[str, Batch]]) -> tuple[dict[str, Tensor], int]:
        """One optimizer step on `accumulate` draws of batches: (losses and gradient norm, number of images).

        Raises:
            NonFiniteLossError: a loss is no number; nothing is changed.
        """
        settings, losses, checks, images = self.settings, dict[str, list[Tensor]](), list[FiniteCheck](), 0
        self.waited = 0.0
        for micro in range(settings.accumulate):
            started = time.perf_counter()
            batch_of = next(batches)
            self.waited += time.perf_counter() - started
            for name, batch in batch_of.items():
                last = micro == settings.accumulate - 1 and name == next(reversed(batch_of))
                loss, check = self._backward(name, batch, micro, last=last)
                losses.setdefault(name, []).append(loss)
                checks.append(check)
                images += len(batch) * self.accelerator.num_processes
                self.shown[name] += 1
        for check in checks:
            check.require(self.step + 1)
        numbers = self._averages(losses)
        if settings.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
            numbers["grad_norm"] = torch.as_tensor(norm)
        self.rates = {name: float(group["lr"]) for name, group in compatible.named_groups(self.optimizer)}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return numbers, images

    def _backward(self, name: str, batch: Batch, micro: int, *, last: bool) -> tuple[Tensor, FiniteCheck]:
        """Add a batch's gradients, which processes share after the `last` one of a step: (loss, its check)."""
        index = (self.step, micro, name, self.accelerator.process_index)
        torch.manual_seed(derive(self.seed, "model", *index))  # dropout
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            per_sample = self.model(batch.to(self.accelerator.device), *index)
            check, loss = FiniteCheck(per_sample, name, batch.keys), per_sample.mean()
            self.accelerator.backward(loss * (self.datasets[name].loss_weight / self.settings.accumulate))
        return loss.detach(), check

    def _averages(self, losses: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        """What the optimizer step lowers, and the mean loss of each dataset."""
        means = {name: torch.stack(values).mean() for name, values in losses.items()}
        shares = {name: len(values) / self.settings.accumulate for name, values in losses.items()}
        total = sum(mean * (self.datasets[name].loss_weight * shares[name]) for name, mean in means.items())
        return {"loss": torch.as_tensor(total), **{f"loss/{name}": mean for name, mean in means.items()}}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        scaler = self.accelerator.scaler
        return {
            "weights": dict(self.parameters),
            "optimizer": self.optimizer.state_dict(),
            "schedule": state_of(self.schedule),
            "ema": self.ema.shadow if self.ema else None,
            "scaler": scaler.state_dict() if scaler else None,
            "position": {"step": self.step, "seed": self.seed},
            "made_by": {"optimizer": self.described, "schedule": compatible.class_name(self.schedule)},
            "config": self.config,
        }

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint as if the run had never stopped.

        Other settings of the config than those that it must have in common with the run are logged.

        Raises:
            ValueError: it is damaged, of a run that is not this one, or beyond `settings.steps`.
        """
        state = checkpoint.load(path)
        self._check(path, state)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            restore(self.schedule, state["schedule"])
        if self.ema is not None:
            self.ema.load(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["position"]["step"]
        log.info("resumed after step %d from %s", self.step, path)
        if self.step == self.settings.steps:
            log.info("these are all steps of the run; to go on, raise train.steps")
        changes = compatible.changes(state.get("config"), self.config)
        if changes and self.accelerator.is_main_process:
            log.warning("settings are not as they were; the run goes on with the new ones:\n  %s", "\n  ".join(changes))

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        """Raise unless this run can go on from a checkpoint's state."""
        compatible.check_weights(path, state["weights"], self.parameters)
        if (done := state["position"]["step"]) > self.settings.steps:
            raise ValueError(
                f"{path}: train.steps: {self.settings.steps} is less than the {done} steps that are done; use more, or "
                "resume from an earlier checkpoint"
            )
        compatible.check_setting(path, "seed", state["position"]["seed"], self.seed)
        averages = ["no average" if part is None else "an average" for part in (state["ema"], self.ema)]
        compatible.check_setting(path, "train.ema", *averages)
        if "made_by" in state:
            made_by, schedule = state["made_by"], compatible.class_name(self.schedule)
            compatible.check_optimizer(path, made_by["optimizer"], self.described)
            compatible.check_setting(path, "train.schedule", made_by["schedule"], schedule)

    def save(self) -> Path | None:
        """Write a checkpoint of this step; the main process alone does.

        Raises:
            NonFiniteLossError: a weight is no number any more.
        """
        self._call("on_save")
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        check_weights(self.parameters, self.step)
        folder = self.folder / "checkpoints"
        return checkpoint.save(folder, self.step, self.state(), keep_last=self.settings.keep_last)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights if the run has an EMA."""
        with self.ema.applied() if self.ema else nullcontext():
            yield

    def export(self) -> list[Path]:
        """Write what a user takes away: a file per plugin and word, a folder of the model if it was trained itself."""
        if not self.accelerator.is_main_process:
            return []
        with self.averaged():
            return exporting.export(self)

    def _call(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)


def _check_loop_fits(optimizer: Any, schedule: Any) -> None:
    """Raise for the few classes of torch that want more of a training loop than `step()`."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("train.optimizer: LBFGS computes a step's loss several times; use torch.optim.AdamW")
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            "train.schedule: ReduceLROnPlateau wants a loss of its own, and a step's is mostly noise; "
            "use hcpdiff.train.schedules.cosine"
        )
