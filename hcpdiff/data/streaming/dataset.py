"""A dataset of unknown length: batches of equal size from a stream that is read from the start on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from hcpdiff.config.ranges import at_least_0, at_least_1, fraction, positive
from hcpdiff.data.buckets import Bucket, RatioGridBucket
from hcpdiff.data.buckets.base import step_for
from hcpdiff.data.images.augment import Augment, Pipeline
from hcpdiff.data.images.views import Views
from hcpdiff.data.prompts import CaptionTransform
from hcpdiff.data.prompts.captioning import Captioning
from hcpdiff.data.scan import BadFile, check_bad, located
from hcpdiff.data.sources.streamed import StreamSource
from hcpdiff.data.streaming.batches import StreamBatches
from hcpdiff.data.streaming.online import Plan
from hcpdiff.types import Batch

Size = tuple[int, int]


class StreamDataset:
    """One entry of `data:` in a config, for data that is too large or too far away to be looked over first.

        data:
          main:
            _target_: hcpdiff.data.StreamDataset
            source: {_target_: hcpdiff.data.TarStream, shards: "data/{000..999}.tar"}
            bucket: {_target_: hcpdiff.data.RatioGridBucket, area: 262144}
            batch_size: 4

    A pass shows every image once. Images wait in a buffer until a batch of one size is full; when the buffer is full,
    the size with most images gives a smaller batch. Batch n is a pure function of the seed and n: a run that resumes
    reads the headers of what was shown before, without decoding. Images are decoded by threads of this process.

    Args:
        source: the stream.
        bucket: which sizes images are cut to. `RatioGridBucket` is best; any other is fitted to the first `buffer`
            images.
        batch_size: images of one step, over all processes together; a batch holds one size only.
        buffer: how many images wait at most. Fewer make more batches smaller.
        shuffle: the next image is drawn from so many; 0 keeps the order of the stream. For streams whose files come
            with their headers, `buffer` and `shuffle` decide how many are in memory.
        threads: that decode images; 0 decodes when a batch is asked for, as do transforms that draw from the global
            generators.
        underfilled: what becomes of smaller batches: "keep" them, or "pad" them with rows of zero loss.
        loss_weight, weight, from_step, to_step: see `Dataset`.
        template, word_names, caption_transforms, prompt_dropout: see `Dataset`.
        crop, flip, transforms, variants: see `Dataset`.
        max_bad: stop if more images than this are unreadable: a share of those seen below 1, else a number.
    """

    cache_latents: Literal[False] = False
    cache_text: Literal[False] = False
    latents = None
    text = None
    batches_per_epoch = None  # nobody knows

    def __init__(
        self,
        source: StreamSource,
        bucket: Bucket,
        *,
        batch_size: Annotated[int, at_least_1],
        buffer: Annotated[int, at_least_1] = 1000,
        shuffle: Annotated[int, at_least_0] = 1000,
        threads: Annotated[int, at_least_0] = 4,
        underfilled: Literal["keep", "pad"] = "keep",
        loss_weight: Annotated[float, at_least_0] = 1.0,
        weight: Annotated[float, positive] = 1.0,
        from_step: Annotated[int, at_least_0] = 0,
        to_step: Annotated[int, at_least_1] | None = None,
        template: str | Path | Sequence[str] | None = None,
        word_names: Mapping[str, str | Sequence[str]] | None = None,
        caption_transforms: Sequence[CaptionTransform] = (),
        prompt_dropout: Annotated[float, fraction] = 0.0,
        crop: Literal["center", "random"] = "center",
        flip: Annotated[float, fraction] = 0.0,
        transforms: Augment | Sequence[Augment] | None = None,
        variants: Annotated[int, at_least_1] | None = None,
        max_bad: Annotated[float, at_least_0] = 0.5,
    ) -> None:
        if not isinstance(source, StreamSource):
            raise ValueError(
                f"source: {type(source).__name__} is no stream; use TarStream or HuggingFaceStream, or Dataset instead "
                "of StreamDataset"
            )
        if isinstance(bucket, Sequence) or getattr(bucket, "max_upscale", None) is not None:
            what = "a list of buckets" if isinstance(bucket, Sequence) else "max_upscale"
            raise ValueError(f"bucket: {what} needs to know all images first, which a stream does not; leave it out")
        if underfilled not in ("keep", "pad"):
            raise ValueError(f"underfilled: {underfilled!r} is not for streams; use 'keep' or 'pad'")
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("shuffle", shuffle, 0),
            ("threads", threads, 0),
            ("from_step", from_step, 0),
        ):
            if value < least:
                raise ValueError(f"{key}: {value} is too few; use {least} or more")
        if buffer < batch_size:
            raise ValueError(f"buffer: {buffer} is less than a batch; use some times {batch_size}, e.g. 1000")
        if weight <= 0:
            raise ValueError(f"weight: {weight} would never draw this dataset; use a number above 0, or leave it out")
        if to_step is not None and to_step <= from_step:
            raise ValueError(f"to_step: from step {from_step} to {to_step} are no steps; use a larger to_step")
        self.source, self.bucket = source, bucket
        self.batch_size, self.buffer, self.shuffle, self.threads = batch_size, buffer, shuffle, threads
        self.underfilled = underfilled
        self.loss_weight, self.weight = loss_weight, weight
        self.from_step, self.to_step = from_step, to_step
        self.captioning = Captioning(caption_transforms, template, word_names, prompt_dropout)
        self.pipeline = Pipeline.of(transforms)
        self.views = Views(crop, flip, self.pipeline is not None, variants)
        self.max_bad = max_bad

    def prepare(
        self,
        seed: int,
        name: str,
        multiple_of: int,
        log: Callable[[str], None] | None = None,
        *,
        max_side: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Choose sizes, by the first images; everything after this is a pure function of `seed` and `name`.

        Args:
            seed: of the run.
            name: of the dataset in the config, for messages; datasets of other names draw other random numbers.
            multiple_of: what the sides of the model's images must divide by.
            log: where to say what was found; default: the logger "hcpdiff.data".
            max_side: the longest side that the model can place, in pixels.
            progress: as of `Dataset`; a stream has nothing to tell.

        Raises:
            ValueError: no image is usable, too many are bad, or the bucket does not suit the model.
        """
        self.seed, self.name, self.where = seed, name, f"data.{name}"
        self._log = log or logging.getLogger("hcpdiff.data").info
        self.bad: list[BadFile] = []
        with located(f"{self.where}.source"):
            first = list(islice(self.source.iterate(0), self.buffer))
        found = [item for item in first if isinstance(item, BadFile)]
        sizes = np.array([item.size for item in first if not isinstance(item, BadFile)], dtype=np.int64)
        if not first or len(found) == len(first):
            check_bad(found, len(first), self.max_bad, self.where)
        with located(f"{self.where}.bucket"):
            self.targets = targets_for(self.bucket, sizes.reshape(-1, 2), multiple_of)
        for size in self.targets:
            if max_side is not None and max(size) > max_side:
                raise ValueError(
                    f"{self.where}.bucket: {size[0]} x {size[1]} is longer than the {max_side} pixels "
                    "that the model has positions for; use a smaller area or ratio_max"
                )
        self._running: StreamBatches | None = None
        self.note_bad(found)
        shown = ", ".join(f"{height}x{width}" for height, width in self.targets)
        self._log(f"{self.where}: a stream, cut to {shown}; the first {len(sizes)} images are readable")
        if self.captioning.unfilled:
            self._log(f"{self.where}: {self.captioning.unfilled}")

    def epochs_in(self, batches: int) -> float:
        """How many whole passes the first `batches` batches of the run are; by headers alone."""
        return float(self._batches().plan.passes(batches))

    def epoch_length(self, number: int) -> int:
        """Nobody knows.

        Raises:
            ValueError: always; mode "sequential" is for datasets whose length is known.
        """
        raise ValueError(f"{self.where}: the length of a stream is not known; use mode 'parallel' or 'mix'")

    def batch(self, number: int, *, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch `number` of the run, counted over all passes; of several processes, this one's share of it."""
        batch, bad = self.load(number, rank=rank, world_size=world_size)
        return self.finish(batch, bad)

    def load(self, number: int, *, rank: int = 0, world_size: int = 1) -> tuple[Batch, list[BadFile]]:
        """What `batch` gives, and what was found unreadable on the way.

        Raises:
            ValueError: no image of several batches in a row can be read, or the stream has changed.
        """
        return self._batches().load(number, rank, world_size)

    def finish(self, batch: Batch, bad: Sequence[BadFile] = ()) -> Batch:
        """The rest of `batch`: list what is bad."""
        if bad:
            self.note_bad(bad)
        return batch

    def note_bad(self, found: Sequence[BadFile]) -> None:
        """List and log unreadable files, each once, and stop if they are too many."""
        known = {file.key for file in self.bad}
        for file in {file.key: file for file in found if file.key not in known}.values():
            self.bad.append(file)
            self._log(f"{self.where}: {file.key} is left out: {file.reason}")
        check_bad(self.bad, max(self._batches().plan.seen, self.buffer), self.max_bad, self.where)

    def _batches(self) -> StreamBatches:
        """Of this process: threads and open files do not follow into another one."""
        if self._running is None or self._process != os.getpid():
            self._process = os.getpid()
            plan = Plan(
                self.source,
                self.targets,
                batch_size=self.batch_size,
                buffer=self.buffer,
                shuffle=self.shuffle,
                seed=self.seed,
                name=self.name,
            )
            alone = self.pipeline is not None and self.pipeline.draws_globally
            padded = self.batch_size if self.underfilled == "pad" else 0
            self._running = StreamBatches(
                plan,
                self.views,
                self.captioning,
                self.pipeline,
                threads=0 if alone else self.threads,
                padded=padded,
            )
        return self._running

    def __getstate__(self) -> dict[str, Any]:
        """Without threads and what they read: another process starts its own."""
        return self.__dict__ | {"_running": None, "_log": _silent}


def targets_for(bucket: Bucket, sizes: np.ndarray, multiple_of: int) -> list[Size]:
    """The sizes that the images of a stream are cut to.

    Args:
        bucket: a grid gives all of its sizes; any other those that these images need.
        sizes: (N, 2) of the first images, (height, width).
        multiple_of: what every side must divide by.

    Raises:
        ValueError: the bucket does not suit the model, or a stream.
    """
    if isinstance(bucket, RatioGridBucket):
        return bucket.targets(step_for(bucket.step, multiple_of))
    assignment = bucket.assign(sizes, multiple_of)
    if not assignment.resize or assignment.index.ndim > 1:
        raise ValueError(f"{type(bucket).__name__} is not for streams; use RatioGridBucket")
    return assignment.targets


def _silent(line: str) -> None:
    """What a worker process logs is told by the process that it works for."""
