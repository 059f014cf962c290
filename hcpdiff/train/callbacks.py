"""What happens around the steps of a run: numbers, progress bar, previews, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hcpdiff.infer.generate import generate
from hcpdiff.infer.save import before_after, contact_sheet
from hcpdiff.train.loggers import JsonLines, Logger

if TYPE_CHECKING:
    from hcpdiff.train.trainer import Trainer

log = logging.getLogger("hcpdiff.train")


class Callback:
    """Override what you need and name your class under `train.callbacks`."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        """After an optimizer step; `losses` are on the device: reading one makes the device wait."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, or the one that a signal stopped the run at."""

    def on_exit(self, trainer: Trainer) -> None:
        """Always, an error included."""


class Metrics(Callback):
    """Gives the numbers of every step to the loggers; fetches them from the device every `log_every` steps."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Mapping[str, Tensor], dict[str, float]]] = []
        self.loggers: list[Logger] = []
        self.latest: dict[str, float] = {}

    def on_start(self, trainer: Trainer) -> None:
        if not trainer.accelerator.is_main_process:
            return
        trainer.folder.mkdir(parents=True, exist_ok=True)
        self.loggers = [JsonLines(), *trainer.settings.loggers]
        for logger in self.loggers:
            logger.start(trainer.folder, trainer.step)

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        rates = {f"lr/{g.get('name', i)}": float(g["lr"]) for i, g in enumerate(trainer.optimizer.param_groups)}
        self._waiting.append((trainer.step, losses, rates | {"images_per_second": images / seconds}))
        if trainer.step % trainer.settings.log_every == 0:
            self._flush(trainer)

    def on_save(self, trainer: Trainer) -> None:
        self._flush(trainer)

    def on_exit(self, trainer: Trainer) -> None:
        self._flush(trainer)
        for logger in self.loggers:
            logger.close()
        self.loggers = []

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        for logger in self.loggers:
            logger.picture(step, name, image)

    def _flush(self, trainer: Trainer) -> None:
        if not self._waiting:
            return
        weights = {name: dataset.loss_weight for name, dataset in trainer.streams.datasets.items()}
        fetched = torch.stack([value.float() for _, losses, _ in self._waiting for value in losses.values()]).tolist()
        numbers = iter(fetched)
        for step, losses, rates in self._waiting:
            values = {name: next(numbers) for name in losses}
            total = sum(value * weights[name] for name, value in values.items() if name in weights)
            named = {f"loss/{name}" if name in weights else name: value for name, value in values.items()}
            self.latest = {"loss": total, **named, **rates}
            for logger in self.loggers:
                logger.log(step, self.latest)
        self._waiting = []


class Progress(Callback):
    """A progress bar with loss, learning rate, images per second and the time that is left."""

    def on_start(self, trainer: Trainer) -> None:
        self._bar = tqdm(
            total=trainer.settings.steps,
            initial=trainer.step,
            desc="train",
            unit="step",
            smoothing=0.05,
            disable=not trainer.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        self._loss: float | None = None
        self._seen: dict[str, float] = {}

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        latest = trainer.metrics.latest
        if latest and latest is not self._seen:
            self._seen = latest
            self._loss = latest["loss"] if self._loss is None else 0.9 * self._loss + 0.1 * latest["loss"]
            rate = next(v for k, v in latest.items() if k.startswith("lr/"))
            self._bar.set_postfix_str(
                f"loss {self._loss:.4f}, lr {rate:.1e}, {latest['images_per_second']:.1f} images/s", refresh=False
            )
        self._bar.update()

    def on_exit(self, trainer: Trainer) -> None:
        self._bar.close()


class Preview(Callback):
    """Pictures of the same prompts and seeds: before the first step, every so often, and at the end."""

    def on_start(self, trainer: Trainer) -> None:
        preview = trainer.settings.preview
        if preview is not None and preview.at_start and trainer.step == 0:
            self._make(trainer)

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        preview = trainer.settings.preview
        last = trainer.step == trainer.settings.steps
        if preview is not None and (trainer.step % preview.every == 0 or last):
            self._make(trainer)

    def on_end(self, trainer: Trainer) -> None:
        first, last = self.path(trainer, 0), self.path(trainer, trainer.step)
        if trainer.accelerator.is_main_process and first.exists() and last.exists() and first != last:
            path = trainer.folder / "previews" / "before-after.png"
            before_after(Image.open(first), Image.open(last), trainer.step).save(path)
            log.info("wrote %s", path)

    @staticmethod
    def path(trainer: Trainer, step: int) -> Path:
        return trainer.folder / "previews" / f"step-{step:06d}.png"

    def _make(self, trainer: Trainer) -> None:
        preview = trainer.settings.preview
        if preview is None or not trainer.accelerator.is_main_process:
            return
        path = self.path(trainer, trainer.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with trainer.averaged(), trainer.accelerator.autocast():
            rows = [generate(trainer.family, request, plugins=trainer.plugins) for request in preview.requests]
        sheet = contact_sheet(rows)
        sheet.save(path)
        trainer.metrics.picture(trainer.step, "preview", sheet)


class Save(Callback):
    """Checkpoints every `save_every` steps, at the end, and when a signal stops the run."""

    def __init__(self) -> None:
        self._saved = -1

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        every = trainer.settings.save_every
        if every is not None and trainer.step % every == 0:
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self._saved != trainer.step:
            trainer.save()
            self._saved = trainer.step
