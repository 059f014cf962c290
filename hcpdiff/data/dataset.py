"""A dataset: images from its sources, cut to the sizes of its bucket, as batches in an order that a seed decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from hcpdiff.config.ranges import at_least_0, at_least_1, fraction, positive
from hcpdiff.data.buckets import Bucket
from hcpdiff.data.buckets.many import assign, check_sides, leave_out, merge_small
from hcpdiff.data.cache import ALONE, Team
from hcpdiff.data.cache.conditioning import CachedText, PromptEncoder
from hcpdiff.data.cache.latents import CachedLatents, ImageEncoder
from hcpdiff.data.collate import collate, with_row_weights
from hcpdiff.data.images.augment import Augment, Pipeline
from hcpdiff.data.images.views import Views
from hcpdiff.data.index import FileIndex
from hcpdiff.data.order import Epoch, Epochs, Underfilled, uneven
from hcpdiff.data.prompts import CaptionTransform
from hcpdiff.data.prompts.captioning import Captioning
from hcpdiff.data.samples import Samples
from hcpdiff.data.scan import BadFile, attempt, check_bad, located, scan
from hcpdiff.data.seeing.summary import summary_lines
from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.streamed import StreamSource
from hcpdiff.types import Batch

CacheMode = Literal[False, "memory", "disk"]
INDEXED = 10_000  # images, from which on their sizes are remembered from run to run, whatever is cached
CAPTIONS_READ_AT_ONCE = 10_000  # images; of more, captions that cannot be read are listed when they are drawn
Log = Callable[[str], None]
ShowProgress = Callable[[int, int], None]  # (done, total)


class Dataset:
    """One entry of `data:` in a config.

    Args:
        source: where images and captions come from; of several, all images together.
        bucket: which sizes they are cut to; of several, each image to a size of each: several resolutions.
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
        transforms: the user's own pipeline, of albumentations, torchvision or functions: what moves pixels runs before
            the crop, on masks and condition images too; colours after it. See `hcpdiff.data.images.augment.Pipeline`.
        variants: None draws crops, flips and transforms afresh each time; n gives each image n versions.
        underfilled: what becomes of the last batch of each size: "keep" it smaller, "pad" it with rows of zero loss,
            "repeat" other images in it, or "drop" it. "merge" gives up sizes that fewer images than a batch have, for
            the nearest other size, and keeps what is left. All but "repeat" and "drop" show each image exactly `repeat`
            times an epoch.
        cache_latents: encode each image once, and keep the latents in "memory" or on "disk".
        encoded_inputs: condition images, e.g. [control_image], that are cached as latents too, so that a ControlNet
            needs no VAE while it trains.
        cache_text: the same for prompts; if they are endless the log says so, and they are encoded as they come.
        cache_dir: where caches on disk lie; datasets and runs may share it.
        max_bad: stop if more images than this are unreadable: a share of all below 1, else a number.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        bucket: Bucket | Sequence[Bucket],
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
        transforms: Augment | Sequence[Augment] | None = None,
        variants: Annotated[int, at_least_1] | None = None,
        underfilled: Underfilled = "keep",
        cache_latents: CacheMode = False,
        encoded_inputs: Sequence[str] = (),
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
        self.transforms = Pipeline.of(transforms)
        self.views = Views(crop, flip, self.transforms is not None, variants)
        if cache_latents and self.views.countable is None:
            raise ValueError(
                "cache_latents: crops, flips or transforms that are drawn afresh each time cannot be cached; set "
                "variants: 4 to cache four versions of each image, or crop: center, flip: 0 and no transforms"
            )
        if encoded_inputs and not cache_latents:
            raise ValueError("encoded_inputs: they go with the cached latents; set cache_latents, or leave them out")
        self.captioning = Captioning(caption_transforms, template, word_names, prompt_dropout)
        self.sources: list[Source] = list(source) if isinstance(source, Sequence) else [source]
        _check_kinds(self.sources, list(bucket) if isinstance(bucket, Sequence) else [bucket])
        self.bucket = bucket
        self.batch_size = batch_size
        self.loss_weight = loss_weight
        self.weight = weight
        self.from_step = from_step
        self.to_step = to_step
        self.underfilled: Underfilled = underfilled
        self.cache_latents: CacheMode = cache_latents
        self.encoded_inputs = list(encoded_inputs)
        self.cache_text: CacheMode = cache_text
        self.cache_dir = Path(cache_dir).expanduser()
        self.max_bad = max_bad

    def prepare(
        self,
        seed: int,
        name: str,
        multiple_of: int,
        log: Log | None = None,
        *,
        max_side: int | None = None,
        progress: ShowProgress | None = None,
    ) -> None:
        """Look over the sources and choose sizes; everything after this is a pure function of `seed` and `name`.

        Args:
            seed: of the run.
            name: of the dataset in the config, for messages; datasets of other names draw other random numbers.
            multiple_of: what the sides of the model's images must divide by.
            log: where to say what was found; default: the logger "hcpdiff.data".
            max_side: the longest side that the model can place, in pixels.
            progress: told how many images were looked at, of how many.

        Raises:
            ValueError: no image is usable, too many are bad, or the bucket does not suit the model.
        """
        self.seed, self.name, self.where = seed, name, f"data.{name}"
        self._log = log or logging.getLogger("hcpdiff.data").info
        self._index = FileIndex(self.cache_dir, least=0 if self.cache_latents == "disk" else INDEXED)
        items, found = scan(self.sources, f"{self.where}.source", index=self._index, progress=progress)
        self._total = len(items) + len(found)
        self.bad: list[BadFile] = []
        self.note_bad(found)
        assignment = assign(self.bucket, items.sizes, multiple_of, f"{self.where}.bucket")
        items, assignment, small = leave_out(items, assignment)
        self.note_bad(small)
        if self.underfilled == "merge":
            assignment = merge_small(assignment, items.repeats, self.batch_size)
        check_sides(items, assignment, max_side, f"{self.where}.bucket")
        self.samples = Samples(
            self.sources, items, assignment, self.views, self.captioning, self.transforms, seed=seed, name=name
        )
        self.latents: CachedLatents | None = None
        self.text: CachedText | None = None
        self.epochs = Epochs(self.samples, self.batch_size, self.underfilled, seed=seed, name=name)
        with located(self.where):
            self.epochs.locate(0)  # there is a batch
        if len(items) <= CAPTIONS_READ_AT_ONCE:
            unreadable: list[BadFile] = []
            for item in range(len(items)):
                self.samples.captions_or_none(item, unreadable)
            self.note_bad(unreadable)
        self._describe()

    def __len__(self) -> int:
        """Samples of the first epoch; with fractional repeats others have a few more or less."""
        return int(self.samples.group_sizes(0).sum())

    @property
    def batches_per_epoch(self) -> int:
        """Of the first epoch; with fractional repeats others have a few more or less."""
        return self.epochs.batches(0)

    def epoch_length(self, number: int) -> int:
        """Batches of an epoch."""
        return self.epochs.batches(number)

    def epochs_in(self, batches: int) -> float:
        """How many epochs the first `batches` batches of the run are."""
        return self.epochs.passed(batches)

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch."""
        return self.epochs[number]

    def batch(self, number: int, *, rank: int = 0, world_size: int = 1) -> Batch:
        """Batch `number` of the run, counted over all epochs; of several processes, this one's share of it."""
        batch, bad = self.load(number, rank=rank, world_size=world_size)
        return self.finish(batch, bad)

    def load(self, number: int, *, rank: int = 0, world_size: int = 1) -> tuple[Batch, list[BadFile]]:
        """The part of `batch` that a worker process may do, if latents are not cached; and what it found unreadable."""
        epoch, position = self.epochs.locate(number)
        rows, weights = self.epoch(epoch).share(position, rank, world_size)
        bad: list[BadFile] = []
        if self.latents is None:
            sample = partial(self.samples.sample, epoch)
            found = [self.samples.first_that_works(epoch, row, sample, bad) for row in rows]
            with located(self.where):
                batch = collate(found)
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
        about: str = "",
        team: Team = ALONE,
    ) -> None:
        """Fill the cache of latents; from then on batches hold latents.

        Args:
            encode_image: (B, 3, H, W) in [-1, 1] to mean and std of the latents, scaled for the denoiser.
            fingerprint: of the VAE: its weights and dtype. Another one has other latents.
            batch_size: images to encode at once.
            workers: processes that decode images.
            about: the VAE in words, for people who look at the cache.
            team: the processes of the run, which share the work.
        """
        folder = self.cache_dir if self.cache_latents == "disk" else None
        with located(self.where):
            self._check_encoded_inputs()
            latents = CachedLatents(
                self.samples, folder, fingerprint, encoded_inputs=self.encoded_inputs, about=about, team=team
            )
        computed = latents.fill(encode_image, batch_size=batch_size, workers=workers, progress=progress)
        self._index.save()
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
        about: str = "",
        team: Team = ALONE,
    ) -> bool:
        """Fill the cache of conditioning; from then on batches hold it, and no text encoder is needed.

        Args:
            encode_prompt: as of the model family.
            fingerprint: of the text encoders: weights, dtype and settings.
            negatives: the run uses negative prompts too.
            batch_size: prompts to encode at once.
            about: the encoders in words, for people who look at the cache.
            team: the processes of the run, which share the work.

        Returns:
            False, and nothing is cached, if prompts are endless or far more than the run has samples.
        """
        prompts = self.samples.all_prompts()
        if prompts is None:
            self._log(f"{self.where}.cache_text: there are ever new prompts, so they are encoded as they come")
            return False
        folder = self.cache_dir if self.cache_text == "disk" else None
        text = CachedText(folder, fingerprint, negatives=negatives, about=about, team=team)
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

    def _check_encoded_inputs(self) -> None:
        """Raise if the first image has no such condition image; one that cannot be read is listed later."""
        record = attempt(lambda: self.samples.record(0), "", []) if self.encoded_inputs else None
        if record is None:
            return
        for name in self.encoded_inputs:
            if name not in record.inputs:
                known = ", ".join(record.inputs) or "none"
                raise ValueError(f"encoded_inputs: the images have no {name!r}; they have {known}")

    def _describe(self) -> None:
        epoch = self.epoch(0)
        for line in summary_lines(self):
            self._log(line)
        for note in filter(
            None, (uneven(epoch, self.samples.groups(0), self.batch_size, self.samples.key), self.captioning.unfilled)
        ):
            self._log(f"{self.where}: {note}")

    def __getstate__(self) -> dict[str, Any]:
        """Without caches and log: worker processes only decode."""
        return self.__dict__ | {"latents": None, "text": None, "_index": None, "_log": _silent}


def _check_kinds(sources: Sequence[object], buckets: Sequence[object]) -> None:
    """Raise unless these are sources and buckets, and at least one of each."""
    for key, given, kind, example in (
        ("source", sources, Source, "FolderSource"),
        ("bucket", buckets, Bucket, "RatioBucket"),
    ):
        if not given:
            raise ValueError(f"{key}: the list is empty; give at least one {key}")
        for one in given:
            if isinstance(one, StreamSource):
                raise ValueError(f"{key}: {type(one).__name__} is a stream; use StreamDataset instead of Dataset")
            if not isinstance(one, kind):
                raise ValueError(f"{key}: {type(one).__name__} is no {key}; use e.g. hcpdiff.data.{example}")


def _check_choice(key: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"{key}: {value!r} is unknown; use {', '.join(map(repr, known))}")


def _silent(line: str) -> None:
    """What a worker process logs is told by the process that it works for."""
