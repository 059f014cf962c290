"""What happens around the steps of a run: numbers, progress bar, checkpoints, previews."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hcpdiff.infer.generation import generate
from hcpdiff.infer.save import before_after, contact_sheet, write_image
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
        """Always, an error included, also one of an `on_start`."""


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
        for logger in (JsonLines(), *trainer.settings.loggers):
            logger.start(trainer.folder, trainer.step)
            self.loggers.append(logger)

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        rates = {f"lr/{name}": rate for name, rate in trainer.rates.items()}
        speed = {"images_per_second": images / seconds, "data_wait": trainer.waited / seconds}
        self._waiting.append((trainer.step, losses, {"epoch": trainer.epoch} | rates | speed))
        if trainer.step % trainer.settings.log_every == 0:
            self._flush(trainer)

    def on_save(self, trainer: Trainer) -> None:
        self._flush(trainer)

    def on_exit(self, trainer: Trainer) -> None:
        self._flush(trainer, together=False)
        for logger in self.loggers:
            logger.close()
        self.loggers = []

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Give a picture to the loggers."""
        for logger in self.loggers:
            logger.picture(step, name, image)

    def _flush(self, trainer: Trainer, *, together: bool = True) -> None:
        """Log what waits: the mean over all processes, if they are here `together`."""
        if not self._waiting:
            return
        fetched = torch.stack([value.float() for _, losses, _ in self._waiting for value in losses.values()])
        if together and trainer.accelerator.num_processes > 1:
            mean = trainer.accelerator.reduce(fetched, reduction="mean")
            assert isinstance(mean, Tensor)
            fetched = mean
        numbers = iter(fetched.tolist())
        for step, losses, rates in self._waiting:
            self.latest = {name: next(numbers) for name in losses} | rates
            for logger in self.loggers:
                logger.log(step, self.latest)
        self._waiting = []


class Progress(Callback):
    """A progress bar with loss, learning rate, images per second and the time that is left."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._loss: float | None = None
        self._seen: Mapping[str, float] = {}

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

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        assert self._bar is not None
        latest = trainer.metrics.latest
        if latest and latest is not self._seen:
            self._seen = latest
            self._loss = latest["loss"] if self._loss is None else 0.9 * self._loss + 0.1 * latest["loss"]
            rate = max(rate for name, rate in latest.items() if name.startswith("lr/"))
            self._bar.set_postfix_str(
                f"epoch {latest['epoch']:.1f}, loss {self._loss:.4f}, lr {rate:.1e}, "
                f"{latest['images_per_second']:.1f} images/s",
                refresh=False,
            )
        self._bar.update()

    def on_exit(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()


class Save(Callback):
    """Checkpoints every `save_every` steps, at the end, and when a signal stops the run."""

    def on_start(self, trainer: Trainer) -> None:
        self._saved = trainer.step  # what it was resumed from, or the first weights, which the config gives again

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        every = trainer.settings.save_every
        if trainer.step == trainer.settings.steps or (every is not None and trainer.step % every == 0):
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self._saved != trainer.step:
            trainer.save()
            self._saved = trainer.step


class Preview(Callback):
    """Pictures of the same prompts and seeds: before the first step, every so often, and at the end."""

    def on_start(self, trainer: Trainer) -> None:
        stopped_before_it = trainer.step > 0 and not self.path(trainer, trainer.step).exists()
        if self._due(trainer) and (trainer.step == 0 or stopped_before_it):
            self._make(trainer)

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        if self._due(trainer):
            self._make(trainer)

    def on_end(self, trainer: Trainer) -> None:
        preview = trainer.settings.preview
        if preview is None or not preview.at_start or not trainer.accelerator.is_main_process:
            return
        first, last = self.path(trainer, 0), self.path(trainer, trainer.step)
        if first.exists() and last.exists() and first != last:
            path = first.with_name("before-after.png")
            with Image.open(first) as before, Image.open(last) as after:
                write_image(before_after(before, after, trainer.step), path)
            log.info("wrote %s", path)

    @staticmethod
    def path(trainer: Trainer, step: int) -> Path:
        """The sheet of the pictures after optimizer step `step`."""
        return trainer.folder / "previews" / f"step-{step:06d}.png"

    @staticmethod
    def _due(trainer: Trainer) -> bool:
        preview, step = trainer.settings.preview, trainer.step
        if preview is None or not preview.requests or not trainer.accelerator.is_main_process:
            return False
        return preview.at_start if step == 0 else step % preview.every == 0 or step == trainer.settings.steps

    def _make(self, trainer: Trainer) -> None:
        preview = trainer.settings.preview
        assert preview is not None
        total = sum(len(request.pictures()) for request in preview.requests)
        with (
            trainer.averaged(),
            trainer.accelerator.autocast(),
            tqdm(total=total, desc="preview", unit="image", delay=1, leave=False, dynamic_ncols=True) as bar,
        ):
            rows = [
                generate(trainer.family, r, plugins=trainer.plugins, on_pictures=lambda part: bar.update(len(part)))
                for r in preview.requests
            ]
        sheet = contact_sheet(rows)
        write_image(sheet, self.path(trainer, trainer.step))
        trainer.metrics.picture(trainer.step, "preview", sheet)
