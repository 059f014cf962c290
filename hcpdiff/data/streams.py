"""The batches of a run: several datasets together, from any step on, by any number of worker processes."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Mapping
from itertools import count, tee
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from hcpdiff.data.dataset import Dataset
from hcpdiff.data.scan import BadFile
from hcpdiff.randomness import derive
from hcpdiff.types import Batch

Draws = dict[str, int]  # dataset -> number of the batch that it gives


class Streams:
    """What the training loop iterates over.

    Args:
        datasets: by name, prepared.
        mode: "parallel": every step has a batch of every dataset, and their losses add up. "mix": every step has a
            batch of one dataset, drawn by their `weight`.
        seed: decides the draws of "mix".
        workers: processes that load images; results do not depend on it. Datasets with cached latents need none.
        rank: of this process in distributed training; each gets its share of every batch.
        world_size: how many processes train.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        *,
        mode: Literal["parallel", "mix"] = "parallel",
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not datasets:
            raise ValueError("data: there is no dataset; add one, e.g. data.main")
        if mode not in ("parallel", "mix"):
            raise ValueError(f"mode: {mode!r} is unknown; use 'parallel' or 'mix'")
        if workers < 0:
            raise ValueError(f"workers: {workers} is no number of processes; use 0 or more")
        for name, dataset in datasets.items():
            if dataset.batch_size % world_size:
                near = -(-dataset.batch_size // world_size) * world_size
                raise ValueError(
                    f"data.{name}.batch_size: {dataset.batch_size} images, over all processes together, do not divide "
                    f"among {world_size}; use {near}"
                )
            if mode == "parallel" and dataset.weight != 1.0:
                raise ValueError(f"data.{name}.weight: it is for mode 'mix'; in 'parallel', set loss_weight instead")
        self.datasets = dict(datasets)
        self.mode = mode
        self.seed = seed
        self.workers = workers
        self.rank = rank
        self.world_size = world_size

    def draws(self, start: int = 0) -> Iterator[Draws]:
        """Which batches each step uses, from step `start` on, without end: a pure function of (seed, step)."""
        if self.mode == "parallel":
            return (dict.fromkeys(self.datasets, step) for step in count(start))
        return self._mix(start)

    def batches(self, start: int = 0) -> Generator[dict[str, Batch], None, None]:
        """The batches of each step, by dataset, from step `start` on, without end.

        A step here is what the trainer draws at once: with gradient accumulation, a part of an optimizer step.
        """
        if not self.workers or all(dataset.latents is not None for dataset in self.datasets.values()):
            for draws in self.draws(start):
                yield {name: self._batch(name, number) for name, number in draws.items()}
            return
        ahead, now = tee(self.draws(start))
        loader = DataLoader(
            _Loads(self.datasets, self.rank, self.world_size),
            batch_size=None,
            sampler=_Sampler(ahead),
            num_workers=self.workers,
            worker_init_fn=_leave_stopping_to_the_run,
        )
        for draws, loaded in zip(now, loader, strict=False):
            if isinstance(loaded, ValueError):
                raise loaded
            yield {
                name: self.datasets[name].finish(*loaded[name]) if name in loaded else self._batch(name, number)
                for name, number in draws.items()
            }

    def _batch(self, name: str, number: int) -> Batch:
        return self.datasets[name].batch(number, rank=self.rank, world_size=self.world_size)

    def _mix(self, start: int) -> Iterator[Draws]:
        names = list(self.datasets)
        borders = np.cumsum([dataset.weight for dataset in self.datasets.values()])
        rng = np.random.default_rng(derive(self.seed, "mix"))

        def draw(steps: int) -> np.ndarray:
            return np.searchsorted(borders, rng.random(steps) * borders[-1], side="right")

        done = np.zeros(len(names), dtype=np.int64)
        for first in range(0, start, 1 << 20):
            done += np.bincount(draw(min(start - first, 1 << 20)), minlength=len(names))
        while True:
            for choice in draw(1024).tolist():
                yield {names[choice]: int(done[choice])}
                done[choice] += 1


class _Sampler:
    """Any iterator as the sampler of a DataLoader."""

    def __init__(self, draws: Iterator[Draws]) -> None:
        self.draws = draws

    def __iter__(self) -> Iterator[Draws]:
        return self.draws


class _Loads(torch.utils.data.Dataset):
    """What worker processes do: the batches of datasets whose latents are not cached."""

    def __init__(self, datasets: Mapping[str, Dataset], rank: int, world_size: int) -> None:
        self.datasets = {name: dataset for name, dataset in datasets.items() if dataset.latents is None}
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, draws: Draws) -> dict[str, tuple[Batch, list[BadFile]]] | ValueError:
        try:
            return {
                name: self.datasets[name].load(number, rank=self.rank, world_size=self.world_size)
                for name, number in draws.items()
                if name in self.datasets
            }
        except ValueError as error:  # handed over, as the DataLoader would bury its message in a traceback
            return error


def _leave_stopping_to_the_run(worker: int) -> None:
    """Ctrl-C, and a SIGTERM to all processes of a job, are for the training process, which then ends its workers.

    Only one SIGTERM is passed over, as a second may be the training process's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
