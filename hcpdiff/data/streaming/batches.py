"""The batches of a stream, decoded by threads before they are asked for."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from hcpdiff.data.collate import collate, with_row_weights
from hcpdiff.data.images.augment import Pipeline
from hcpdiff.data.images.cutting import cut, image_tensor, unit_tensor
from hcpdiff.data.images.views import View, Views
from hcpdiff.data.order import Epoch
from hcpdiff.data.prompts.captioning import Captioning
from hcpdiff.data.scan import BadFile, attempt, located
from hcpdiff.data.streaming.online import Plan, Row
from hcpdiff.randomness import derive, python_random
from hcpdiff.types import Batch, Prompt, Sample

_AHEAD = 2  # batches that are decoded before they are asked for
_TRIES = 8  # batches in a row of which no image can be read, before we give up


class StreamBatches:
    """What `StreamDataset` gives, in one process.

    Args:
        plan: which images each batch shows.
        views: how they are cut.
        captioning: how their prompts are made.
        pipeline: the user's own transforms.
        threads: that decode; 0 decodes when a batch is asked for.
        padded: rows that a smaller batch is filled up to; 0 leaves it smaller.
    """

    def __init__(
        self, plan: Plan, views: Views, captioning: Captioning, pipeline: Pipeline | None, *, threads: int, padded: int
    ) -> None:
        self.plan = plan
        self.views = views
        self.captioning = captioning
        self.pipeline = pipeline
        self.padded = padded
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        self._lock = threading.Lock()
        self._pending: dict[int, _Planned] = {}

    def load(self, number: int, rank: int, world_size: int) -> tuple[Batch, list[BadFile]]:
        """One process's share of a batch, and what was found unreadable on the way.

        Raises:
            ValueError: no image of several batches in a row can be read, or the stream has changed.
        """
        bad: list[BadFile] = []
        self._forget(number)
        self._planned(number)
        if self._pool is not None:
            for ahead in range(number, number + _AHEAD + 1):
                planned = self._planned(ahead)
                for place in planned.share(rank, world_size)[0]:
                    if place not in planned.futures:
                        planned.futures[place] = self._pool.submit(self._decode, planned.rows[place])
        for shown in range(number, number + _TRIES):
            batch = self._collated(self._planned(shown), rank, world_size, bad)
            if batch is not None:
                return batch, self.plan.take_bad() + bad
        raise ValueError(
            f"data.{self.plan.name}.source: no image of {_TRIES} batches in a row can be read; the last, "
            f"{bad[-1].key}: {bad[-1].reason}"
        )

    def _collated(self, planned: _Planned, rank: int, world_size: int, bad: list[BadFile]) -> Batch | None:
        """A share of a batch; rows that cannot be read show others of it. None if all of the batch cannot be read."""
        places, weights = planned.share(rank, world_size)
        samples = [self._first_that_works(planned, place, bad) for place in places]
        good = [sample for sample in samples if sample is not None]
        if len(good) < len(samples):
            return None
        with located(f"data.{self.plan.name}"):
            batch = collate(good)
        return batch if weights is None else with_row_weights(batch, weights)

    def _first_that_works(self, planned: _Planned, place: int, bad: list[BadFile]) -> Sample | None:
        for step in range(len(planned.rows)):
            other = (place + step) % len(planned.rows)
            if other not in planned.futures:
                planned.futures[other] = done = Future()
                done.set_result(self._decode(planned.rows[other]))
            sample, found = planned.futures[other].result()
            bad += found
            if sample is not None:
                return sample
        return None

    def _decode(self, row: Row) -> tuple[Sample | None, list[BadFile]]:
        found: list[BadFile] = []
        return attempt(lambda: self._sample(row), row.item.key, found), found

    def _sample(self, row: Row) -> Sample:
        view, prompt = self._view(row), self._prompt(row)
        record = row.item.load(view.size.scaled)
        with nullcontext() if self.pipeline is None else self._lock:  # the user's transforms have a state of their own
            example = cut(record, view.size, flip=view.flip, transforms=self.pipeline, seed=view.seed or 0)
        return Sample(
            key=row.item.key,
            prompt=prompt,
            size=example.size,
            image=image_tensor(example.image),
            loss_mask=None if example.loss_mask is None else torch.tensor(example.loss_mask)[None],
            inputs={name: unit_tensor(picture) for name, picture in example.inputs.items()},
        )

    def _view(self, row: Row) -> View:
        key, size = row.item.key, row.item.size
        if self.views.countable is None:
            return self.views.drawn(derive(self.plan.seed, f"{self.plan.name}/view", row.number, key), size, row.target)
        return self.views.fixed(key, self.views.variant(key, row.number), size, row.target)

    def _prompt(self, row: Row) -> Prompt:
        rng = python_random(self.plan.seed, f"{self.plan.name}/prompt", row.number, row.item.key)
        return self.captioning.draw(row.item.captions, rng)

    def _planned(self, number: int) -> _Planned:
        """A batch that is asked for, or soon will be."""
        if number not in self._pending:
            rows = self.plan.batch(number)
            self._pending[number] = _Planned(rows, max(len(rows), self.padded))
        return self._pending[number]

    def _forget(self, number: int) -> None:
        """Batches that are not asked for soon; all, if this is a jump."""
        last = number + _TRIES if number in self._pending else number
        for other in [other for other in self._pending if not number <= other < last]:
            for future in self._pending.pop(other).futures.values():
                future.cancel()


@dataclass
class _Planned:
    """A batch that may be decoded already."""

    rows: list[Row]
    size: int  # rows with the ones that pad it
    futures: dict[int, Future[tuple[Sample | None, list[BadFile]]]] = field(default_factory=dict)  # by place in `rows`

    def share(self, rank: int, world_size: int) -> tuple[list[int], list[float] | None]:
        """The places of one process's rows, and their weights in the loss; see `Epoch.share`."""
        places = np.resize(np.arange(len(self.rows)), self.size)
        batch = Epoch(places, np.array([0, self.size]), np.array([len(self.rows)]))
        return batch.share(0, rank, world_size)
