"""One process of several that train together; test_processes.py starts them with torchrun.

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.train.processes FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Generator, Tensor

from hcpdiff.train.callbacks import Callback
from hcpdiff.train.trainer import Trainer
from tests.train import runs


def fixed(count: int, generator: Generator) -> Tensor:
    return torch.full((count,), 500.0, dtype=torch.float64)


def mirrored(latents: Tensor, generator: Generator) -> Tensor:
    """Noise that depends on the picture alone: otherwise every process draws its own."""
    return latents.flip(-1)


def trainer(folder: Path, **settings: object) -> Trainer:
    """The same run for any number of processes."""
    data = {"main": runs.pictures(6, batch_size=2, cache_latents="memory")}
    return runs.make(folder, data=data, timesteps=fixed, noise=mirrored, accumulate=2, **settings)


class StopOne(Callback):
    """Tells the last process alone to stop, after the first step."""

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        if trainer.accelerator.is_last_process and trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    trainer(folder / "whole").fit()
    with suppress(KeyboardInterrupt):
        trainer(folder / "stopped", log_every=2, callbacks=[StopOne()]).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
