"""The batches of a run: several datasets together, from any step on, by any number of worker processes."""

from __future__ import annotations

import queue
import signal
import threading
from bisect import bisect_right as bisect
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import accumulate, count, islice, pairwise, tee
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader

from hcpdiff.data.dataset import Dataset
from hcpdiff.data.scan import BadFile
from hcpdiff.data.streaming.dataset import StreamDataset
from hcpdiff.randomness import derive
from hcpdiff.types import Batch

T = TypeVar("T")
Mode = Literal["parallel", "mix", "sequential"]
AnyDataset: TypeAlias = Dataset | StreamDataset
Datasets: TypeAlias = Mapping[str, AnyDataset]  # by name
Draws = dict[str, int]  # dataset -> number of the batch that it gives
AHEAD = 2  # draws that are made ready while the model computes


class Streams:
    """What the training loop iterates over.

    Args:
        datasets: by name, prepared.
        mode: "parallel": every draw has a batch of every dataset, and their losses add up. "mix": a batch of one
            dataset, drawn by their `weight`. "sequential": one dataset for a whole epoch of it, then the next, and
            around again. A dataset takes part from its `from_step` to its `to_step`.
        seed: decides the draws of "mix".
        workers: processes that load images; results do not depend on it. Datasets with cached latents need none.
        accumulate: draws of an optimizer step, which is what `from_step` and `to_step` count.
        rank: of this process in distributed training; each gets its share of every batch.
        world_size: how many processes train.
    """

    def __init__(
        self,
        datasets: Datasets,
        *,
        mode: Mode = "parallel",
        seed: int = 0,
        workers: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not datasets:
            raise ValueError("data: there is no dataset; add one, e.g. data.main")
        if mode not in get_args(Mode):
            raise ValueError(f"mode: {mode!r} is unknown; use 'parallel', 'mix' or 'sequential'")
        if workers < 0:
            raise ValueError(f"workers: {workers} is no number of processes; use 0 or more")
        for name, dataset in datasets.items():
            if dataset.batch_size % world_size:
                near = -(-dataset.batch_size // world_size) * world_size
                raise ValueError(
                    f"data.{name}.batch_size: {dataset.batch_size} images, over all processes together, do not divide "
                    f"among {world_size}; use {near}"
                )
            if mode != "mix" and dataset.weight != 1.0:
                instead = "loss_weight" if mode == "parallel" else "the source's repeat"
                raise ValueError(f"data.{name}.weight: it is for mode 'mix'; in {mode!r}, set {instead} instead")
        self.datasets = dict(datasets)
        self.mode = mode
        self.seed = seed
        self.workers = workers
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size

    def draws(self, start: int = 0) -> Iterator[Draws]:
        """Which batches each draw uses, from draw `start` on, without end: a pure function of (seed, draw).

        Raises:
            ValueError: no dataset takes part in a step.
        """
        return islice(self._draws(), start, None)

    def shown(self, draws: int) -> dict[str, int]:
        """How many batches of each dataset the first draws have."""
        totals = dict.fromkeys(self.datasets, 0)
        for draw in islice(self._draws(), draws):
            for name in draw:
                totals[name] += 1
        return totals

    def epoch(self, shown: Mapping[str, int]) -> float:
        """How many epochs of the run so many batches are: how often every image of every dataset was shown at least.

        So in mode "parallel" the longest dataset makes the epoch, in "sequential" all one after another, and in "mix"
        the one that is drawn least for its length.
        """
        return min(dataset.epochs_in(shown[name]) for name, dataset in self.datasets.items())

    def batches(self, start: int = 0) -> Generator[dict[str, Batch], None, None]:
        """The batches of each draw, by dataset, from draw `start` on, without end.

        With gradient accumulation, an optimizer step is several draws. They are made ready in other processes, or in a
        thread where the latents are cached, while the model computes.
        """
        for_workers = _for_workers(self.datasets)
        if all(dataset.latents is not None for dataset in self.datasets.values()):
            with closing(ahead(self._here(start), AHEAD)) as draws:
                yield from draws
        elif not self.workers or not for_workers:
            yield from self._here(start)
        else:
            yield from self._by_workers(start)

    def _by_workers(self, start: int) -> Iterator[dict[str, Batch]]:
        for_workers, now = tee(self.draws(start))
        loader = DataLoader(
            _Loads(self.datasets, self.rank, self.world_size),
            batch_size=None,
            sampler=_Sampler(for_workers),
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

    def _here(self, start: int) -> Iterator[dict[str, Batch]]:
        for draws in self.draws(start):
            yield {name: self._batch(name, number) for name, number in draws.items()}

    def _batch(self, name: str, number: int) -> Batch:
        return self.datasets[name].batch(number, rank=self.rank, world_size=self.world_size)

    def _draws(self) -> Iterator[Draws]:
        """All draws of the run, from the first."""
        done = dict.fromkeys(self.datasets, 0)
        chosen = {"parallel": self._parallel, "mix": self._mix, "sequential": self._sequential}[self.mode]()
        for names in chosen:
            yield {name: done[name] for name in names}
            for name in names:
                done[name] += 1

    def _parallel(self) -> Iterator[list[str]]:
        return iter(self._taking_part())

    def _mix(self) -> Iterator[list[str]]:
        rng = np.random.default_rng(derive(self.seed, "mix"))
        chances: Iterator[float] = (chance for _ in count() for chance in rng.random(1024).tolist())
        for names, chance in zip(self._taking_part(), chances, strict=False):
            borders = list(accumulate(self.datasets[name].weight for name in names))
            yield [names[min(bisect(borders, chance * borders[-1]), len(names) - 1)]]

    def _sequential(self) -> Iterator[list[str]]:
        present = self._taking_part()
        names = next(present)
        for lap in count():
            for name, dataset in self.datasets.items():
                for _ in range(dataset.epoch_length(lap)):
                    if name not in names:
                        break
                    yield [name]
                    names = next(present)

    def _taking_part(self) -> Iterator[list[str]]:
        """The datasets of each draw's step."""
        windows = {
            name: (d.from_step, float("inf") if d.to_step is None else d.to_step) for name, d in self.datasets.items()
        }
        borders = sorted({border for window in windows.values() for border in window})
        for first, end in pairwise([0, *borders, float("inf")]):
            names = [name for name, (start, stop) in windows.items() if start <= first < stop]
            for draw in count() if end == float("inf") else range(int(end - first) * self.accumulate):
                if not names:
                    step = int(first) + draw // self.accumulate
                    raise ValueError(f"data: no dataset takes part in step {step + 1}; look at from_step and to_step")
                yield names


def ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """The same items, of which a thread makes up to `count` before they are asked for."""
    ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(count)
    stop = threading.Event()

    def put(item: list[T], error: BaseException | None = None) -> bool:
        """Wait for room; False if nobody wants items any more."""
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put([item]):
                    return
            put([])
        except BaseException as error:  # handed over to the thread that asks
            put([], error)

    thread = threading.Thread(target=fill, name="data", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        stop.set()
        thread.join()


class _Sampler:
    """Any iterator as the sampler of a DataLoader."""

    def __init__(self, draws: Iterator[Draws]) -> None:
        self.draws = draws

    def __iter__(self) -> Iterator[Draws]:
        return self.draws


def _for_workers(datasets: Datasets) -> dict[str, Dataset]:
    """Those that worker processes can load a batch of: not cached, and not read from the start on."""
    return {name: d for name, d in datasets.items() if isinstance(d, Dataset) and d.latents is None}


class _Loads(torch.utils.data.Dataset):
    """What worker processes do: the batches of datasets whose latents are not cached."""

    def __init__(self, datasets: Datasets, rank: int, world_size: int) -> None:
        self.datasets = _for_workers(datasets)
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
