"""A dataset: images from its sources, cut to the sizes of its bucket, as batches in an order that a seed decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np

from hcpdiff.config.ranges import at_least_0, at_least_1, fraction, positive
from hcpdiff.data.buckets import Bucket
from hcpdiff.data.cached_latents import CachedLatents, ImageEncoder
from hcpdiff.data.cached_text import CachedText, PromptEncoder
from hcpdiff.data.captioning import Captioning
from hcpdiff.data.collate import collate, with_row_weights
from hcpdiff.data.order import Epoch, Underfilled, plan, uneven
from hcpdiff.data.prompts import CaptionTransform
from hcpdiff.data.samples import Samples
from hcpdiff.data.scan import BadFile, check_bad, located, scan
from hcpdiff.data.sources.base import Source
from hcpdiff.data.transforms import Augment
from hcpdiff.data.views import Views
from hcpdiff.randomness import derive
from hcpdiff.types import Batch

CacheMode = Literal[False, "memory", "disk"]
Log = Callable[[str], None]
ShowProgress = Callable[[int, int], None]  # (done, total)


class Dataset:
    """One entry of `data:` in a config.

    Args:
        source: where images and captions come from; of several, all images together.
        bucket: which sizes they are cut to.
        batch_size: images of one step, over all processes together; a batch holds one size only.
        loss_weight: factor of the loss of this dataset.
        weight: how often it is drawn in mode "mix", relative to the other datasets.
        from_step: it takes part after so many optimizer steps.
        to_step: and until so many are done; None: to the end.
        template: a text file with a prompt template per line, or a list of templates; see `TemplateFill`.
        word_names: {name: word, or [positive, negative]} for the template.
        caption_transforms: change each caption, in order, before the template is filled; for another order put
            `TemplateFill` among them.
        prompt_dropout: probability of an empty prompt, for guidance at inference.
        crop: "center", or "random".
        flip: probability of mirroring the image.
        transforms: the user's own pipeline, e.g. an albumentations `Compose`, on the cut image; see `augment`.
        variants: None draws crops, flips and transforms afresh each time; n gives each image n versions.
        underfilled: what becomes of the last batch of each size: "keep" it smaller, "pad" it with rows of zero loss,
            "repeat" other images in it, or "drop" it. The first two show each image exactly `repeat` times an epoch.
        cache_latents: encode each image once, and keep the latents in "memory" or on "disk".
        cache_text: the same for prompts; if they are endless the log says so, and they are encoded as they come.
        cache_dir: where caches on disk lie; datasets and runs may share it.
        max_bad: stop if more images than this are unreadable: a share of all below 1, else a number.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        bucket: Bucket,
        *,
        batch_size: Annotated[int, at_least_1],
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
        transforms: Augment | None = None,
        variants: Annotated[int, at_least_1] | None = None,
        underfilled: Underfilled = "keep",
        cache_latents: CacheMode = False,
        cache_text: CacheMode = False,
        cache_dir: str | Path = ".cache/hcpdiff",
        max_bad: Annotated[float, at_least_0] = 0.5,
    ) -> None:
        _check_choice("underfilled", underfilled, get_args(Underfilled))
        _check_choice("cache_latents", cache_latents, get_args(CacheMode))
        _check_choice("cache_text", cache_text, get_args(CacheMode))
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is not a batch size; use 1 or more")
        if weight <= 0:
            raise ValueError(f"weight: {weight} would never draw this dataset; use a number above 0, or leave it out")
        if from_step < 0 or (to_step is not None and to_step <= from_step):
            raise ValueError(f"to_step: from step {from_step} to {to_step} are no steps; use a larger to_step")
        self.views = Views(crop, flip, transforms is not None, variants)
        if cache_latents and self.views.countable is None:
            raise ValueError(
                "cache_latents: crops, flips or transforms that are drawn afresh each time cannot be cached; set "
                "variants: 4 to cache four versions of each image, or crop: center, flip: 0 and no transforms"
            )
        self.captioning = Captioning(caption_transforms, template, word_names, prompt_dropout)
        self.sources: list[Source] = list(source) if isinstance(source, Sequence) else [source]
        if not self.sources:
            raise ValueError("source: the list is empty; give at least one source")
        self.bucket = bucket
        self.batch_size = batch_size
        self.loss_weight = loss_weight
        self.weight = weight
        self.from_step = from_step
        self.to_step = to_step
        self.transforms = transforms
        self.underfilled: Underfilled = underfilled
        self.cache_latents: CacheMode = cache_latents
        self.cache_text: CacheMode = cache_text
        self.cache_dir = Path(cache_dir).expanduser()
        self.max_bad = max_bad

    def prepare(self, seed: int, name: str, multiple_of: int, log: Log | None = None) -> None:
        """Look over the sources and choose sizes; everything after this is a pure function of `seed` and `name`.

        Args:
            seed: of the run.
            name: of the dataset in the config, for messages; datasets of other names draw other random numbers.
            multiple_of: what the sides of the model's images must divide by.
            log: where to say what was found; default: the logger "hcpdiff.data".

        Raises:
            ValueError: no image is usable, too many are bad, or the bucket does not suit the model.
        """
        self.seed, self.name, self.where = seed, name, f"data.{name}"
        self._log = log or logging.getLogger("hcpdiff.data").info
        items, found = scan(self.sources, f"{self.where}.source")
        self._total = len(items) + len(found)
        self.bad: list[BadFile] = []
        self.note_bad(found)
        with located(f"{self.where}.bucket"):
            assignment = self.bucket.assign(items.sizes, multiple_of)
        self.samples = Samples(
            self.sources, items, assignment, self.views, self.captioning, self.transforms, seed=seed, name=name
        )
        self.latents: CachedLatents | None = None
        self.text: CachedText | None = None
        self._epochs: dict[int, Epoch] = {}
        if not self.batches_per_epoch:
            raise ValueError(
                f"{self.where}.underfilled: 'drop' leaves nothing, as no size has {self.batch_size} images; use 'keep'"
            )
        self._describe()

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.samples)

    @property
    def batches_per_epoch(self) -> int:
        """The same for every epoch."""
        return len(self.epoch(0))

    def epoch_length(self, number: int) -> int:
        """Batches of an epoch."""
        return self.batches_per_epoch

    def epochs_in(self, batches: int) -> float:
        """How many epochs the first `batches` batches of the run are."""
        return batches / self.batches_per_epoch

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch."""
        if number not in self._epochs:
            if len(self._epochs) >= 3:
                self._epochs = {0: self._epochs[0]}
            rng = np.random.default_rng(derive(self.seed, f"{self.name}/order", number))
            self._epochs[number] = plan(self.samples.groups, self.batch_size, self.underfilled, rng)
        return self._epochs[number]

    def batch(self, number: int, *, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch `number` of the run, counted over all epochs; of several processes, this one's share of it."""
        batch, bad = self.load(number, rank=rank, world_size=world_size)
        return self.finish(batch, bad)

    def load(self, number: int, *, rank: int = 0, world_size: int = 1) -> tuple[Batch, list[BadFile]]:
        """The part of `batch` that a worker process may do, if latents are not cached; and what it found unreadable."""
        epoch, position = divmod(number, self.batches_per_epoch)
        rows, weights = self.epoch(epoch).share(position, rank, world_size)
        bad: list[BadFile] = []
        if self.latents is None:
            sample = partial(self.samples.sample, epoch)
            batch = collate([self.samples.first_that_works(epoch, row, sample, bad) for row in rows])
        else:
            batch = self.latents.batch(epoch, rows)
        return (batch if weights is None else with_row_weights(batch, weights)), bad

    def finish(self, batch: Batch, bad: Sequence[BadFile] = ()) -> Batch:
        """The rest of it: list what is bad, and add cached conditioning."""
        if bad:
            self.note_bad(bad)
        return batch if self.text is None else self.text.attach(batch)

    def store_latents(
        self,
        encode_image: ImageEncoder,
        fingerprint: str,
        *,
        batch_size: int = 8,
        workers: int = 0,
        progress: ShowProgress | None = None,
    ) -> None:
        """Fill the cache of latents; from then on batches hold latents.

        Args:
            encode_image: (B, 3, H, W) in [-1, 1] to mean and std of the latents, scaled for the denoiser.
            fingerprint: of the VAE: its weights and dtype. Another one has other latents.
            batch_size: images to encode at once.
            workers: processes that decode images.
        """
        with located(self.where):
            latents = CachedLatents(self.samples, self.cache_dir if self.cache_latents == "disk" else None, fingerprint)
        computed = latents.fill(encode_image, batch_size=batch_size, workers=workers, progress=progress)
        self.note_bad(latents.bad)
        self.latents = latents
        self._log(f"{self.where}: latents of {len(latents)} images are cached, {computed} of them new")

    def store_text(
        self,
        encode_prompt: PromptEncoder,
        fingerprint: str,
        *,
        negatives: bool = False,
        batch_size: int = 16,
        progress: ShowProgress | None = None,
    ) -> bool:
        """Fill the cache of conditioning; from then on batches hold it, and no text encoder is needed.

        Args:
            encode_prompt: as of the model family.
            fingerprint: of the text encoders: weights, dtype and settings.
            negatives: the run uses negative prompts too.
            batch_size: prompts to encode at once.

        Returns:
            False, and nothing is cached, if prompts are endless or far more than the run has samples.
        """
        prompts = self.samples.all_prompts()
        if prompts is None:
            self._log(f"{self.where}.cache_text: there are ever new prompts, so they are encoded as they come")
            return False
        text = CachedText(self.cache_dir if self.cache_text == "disk" else None, fingerprint, negatives=negatives)
        computed = text.fill(prompts, encode_prompt, batch_size=batch_size, progress=progress)
        self.text = text
        self._log(f"{self.where}: conditioning of {len(prompts)} prompts is cached, {computed} of them new")
        return True

    def note_bad(self, found: Sequence[BadFile]) -> None:
        """List and log unreadable files, each once, and stop if they are too many."""
        known = {file.key for file in self.bad}
        for file in {file.key: file for file in found if file.key not in known}.values():
            self.bad.append(file)
            self._log(f"{self.where}: {file.key} is left out: {file.reason}")
        check_bad(self.bad, self._total, self.max_bad, self.where)

    def _describe(self) -> None:
        epoch, count = self.epoch(0), len(self.samples.items)
        sizes = ", ".join(f"{height}x{width}" for height, width in self.samples.targets)
        self._log(f"{self.where}: {count} images of {sizes}; an epoch is {len(self)} samples in {len(epoch)} batches")
        for note in filter(None, (uneven(epoch, len(self), self.batch_size), self.captioning.unfilled)):
            self._log(f"{self.where}: {note}")

    def __getstate__(self) -> dict[str, Any]:
        """Without caches and log: worker processes only decode."""
        return self.__dict__ | {"latents": None, "text": None, "_log": _silent}


def _check_choice(key: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"{key}: {value!r} is unknown; use {', '.join(map(repr, known))}")


def _silent(line: str) -> None:
    """What a worker process logs is told by the process that it works for."""
