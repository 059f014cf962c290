"""The numbered samples of a dataset, and what each of them looks like in which epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from hcpdiff.data.buckets import Assignment
from hcpdiff.data.images.augment import Pipeline
from hcpdiff.data.images.cutting import Cut, cut, image_tensor, unit_tensor
from hcpdiff.data.images.views import View, Views
from hcpdiff.data.numbering import Numbering
from hcpdiff.data.prompts.captioning import Captioning
from hcpdiff.data.scan import BadFile, Items, attempt
from hcpdiff.data.sources.base import Record, Source
from hcpdiff.randomness import derive, python_random
from hcpdiff.types import Prompt, Sample

T = TypeVar("T")

_PROMPTS = 1 << 14  # that stay in memory


class Samples:
    """Items, at each of their sizes, as often as they repeat; see `Numbering` for the numbers.

    Sample n of epoch e is a pure function of (seed, name, e, n).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        items: Items,
        assignment: Assignment,
        views: Views,
        captioning: Captioning,
        transforms: Pipeline | None,
        *,
        seed: int,
        name: str,
    ) -> None:
        self.sources = sources
        self.items = items
        self.targets = assignment.targets
        self.target_of = assignment.index  # (N,) or (N, K), into `targets`; -1: an item lacks this resolution
        self.resize = assignment.resize
        self.views = views
        self.captioning = captioning
        self.transforms = transforms
        self.seed = seed
        self.name = name
        self.numbering = Numbering(
            assignment.columns, items.repeats, len(self.targets), derive(seed, f"{name}/fractional repeats")
        )
        self._fixed_prompts: dict[int, Prompt | None] = {}

    def __len__(self) -> int:
        """All samples; an epoch shows some of them if a repeat is fractional, else all."""
        return len(self.numbering)

    @property
    def item_of(self) -> np.ndarray:
        """(M,) the item of each sample."""
        return self.numbering.item_of

    @property
    def steady(self) -> bool:
        """Whether every epoch shows all samples: no repeat is fractional."""
        return self.numbering.steady

    def groups(self, epoch: int) -> list[np.ndarray]:
        """The numbers of the samples that an epoch shows, by target."""
        return self.numbering.groups(epoch)

    def group_sizes(self, epoch: int) -> np.ndarray:
        """How many samples of each target an epoch shows, (targets,)."""
        return self.numbering.group_sizes(epoch)

    def key(self, number: int) -> str:
        """The key of a sample's item."""
        return self.items.key(int(self.item_of[number]))

    def sample(self, epoch: int, number: int) -> Sample:
        """Decode and cut a sample.

        Raises:
            Exception: of nearly any kind, if its file is broken.
        """
        item = int(self.item_of[number])
        prompt = self.prompt(epoch, number)
        example = self.cut(item, self.view(epoch, number)[0])
        return Sample(
            key=self.items.key(item),
            prompt=prompt,
            size=example.size,
            image=image_tensor(example.image),
            loss_mask=None if example.loss_mask is None else torch.tensor(example.loss_mask)[None],
            inputs={name: unit_tensor(picture) for name, picture in example.inputs.items()},
        )

    def prompt(self, epoch: int, number: int) -> Prompt:
        """The prompt of a sample."""
        item = int(self.item_of[number])
        if item not in self._fixed_prompts:
            if len(self._fixed_prompts) >= _PROMPTS:
                del self._fixed_prompts[next(iter(self._fixed_prompts))]
            self._fixed_prompts[item] = self.captioning.only(self.captions(item))
        fixed = self._fixed_prompts[item]
        if fixed is not None:
            return fixed
        rng = python_random(self.seed, f"{self.name}/prompt", epoch, int(number))
        return self.captioning.draw(self.captions(item), rng, self._caption_weights(item))

    def captions(self, item: int) -> Sequence[str]:
        """The captions of an item."""
        return self.sources[self.items.source[item]].captions(int(self.items.local[item]))

    def captions_or_none(self, item: int, bad: list[BadFile]) -> Sequence[str] | None:
        """The captions of an item; None, and a line in `bad`, if they cannot be read."""
        return attempt(lambda: self.captions(item), self.items.key(item), bad)

    def all_prompts(self) -> set[Prompt] | None:
        """Every prompt that a run can see; None if they are endless, or far more than there are samples."""
        prompts: set[Prompt] = set()
        for item in range(len(self.items)):
            possible, all_of_them = self.prompts_of(item)
            if not all_of_them or len(prompts) > 4 * len(self) + 1000:
                return None
            prompts |= possible
        return prompts

    def prompts_of(self, item: int) -> tuple[set[Prompt], bool]:
        """The prompts that an item can have, and whether these are all: of endless ones it is one."""
        captions = self.captions_or_none(item, [])
        if captions is None:
            return set(), True
        possible = self.captioning.outcomes(captions)
        if possible is not None:
            return possible, True
        rng = python_random(self.seed, f"{self.name}/prompt of an item", item)
        return {self.captioning.draw(captions, rng, self._caption_weights(item))}, False

    @property
    def variants(self) -> int | None:
        """How many different cuts an item has at most, over its resolutions and views; None if they are endless."""
        views = self.views.countable
        return None if views is None else views * self.numbering.resolutions

    def variants_of(self, item: int) -> list[int]:
        """The variants that an item has: all, but those of resolutions that it lacks. They are countable."""
        views = self.views.countable or 0
        return [column * views + view for column in self.numbering.columns_of(item) for view in range(views)]

    def variant(self, epoch: int, number: int) -> int:
        """Which of the countable variants of its item a sample shows."""
        column, showing = self.numbering.column_of(number), self.numbering.showing(epoch, number)
        view = self.views.variant(self.key(number), showing)
        return column * (self.views.countable or 1) + view

    def variant_target(self, item: int, variant: int) -> tuple[int, int]:
        """(height, width) of a variant; of a resolution that the item lacks, the size of its first."""
        column = variant // (self.views.countable or 1)
        return self.targets[self.numbering.target(item, column)]

    def variant_view(self, item: int, variant: int) -> View:
        """One of the countable variants of an item."""
        view = variant % (self.views.countable or 1)
        target = self.variant_target(item, variant)
        return self.views.fixed(self.items.key(item), view, self.original(item), target, resize=self.resize)

    def view(self, epoch: int, number: int) -> tuple[View, int]:
        """How a sample is cut, and which variant of its item that is; 0 if views are endless."""
        item = int(self.item_of[number])
        if self.views.countable is None:
            seed = derive(self.seed, f"{self.name}/view", epoch, int(number))
            target = self.target_of_sample(number)
            return self.views.drawn(seed, self.original(item), target, resize=self.resize), 0
        variant = self.variant(epoch, number)
        return self.variant_view(item, variant), variant

    def original(self, item: int) -> tuple[int, int]:
        """(height, width) of the file."""
        height, width = self.items.sizes[item].tolist()
        return height, width

    def target_of_sample(self, number: int) -> tuple[int, int]:
        """(height, width) that a sample is cut to."""
        return self.targets[self.numbering.target_of(number)]

    def record(self, item: int, at_least: tuple[int, int] | None = None) -> Record:
        """Decode an item."""
        return self.sources[self.items.source[item]].load(int(self.items.local[item]), at_least)

    def cut(self, item: int, view: View) -> Cut:
        """Decode an item and cut it."""
        record = self.record(item, view.size.scaled)
        return cut(record, view.size, flip=view.flip, transforms=self.transforms, seed=view.seed or 0)

    def first_that_works(self, epoch: int, number: int, get: Callable[[int], T], bad: list[BadFile]) -> T:
        """What `get` gives for a sample; if that fails, for another of its size, drawn by (seed, epoch, number).

        Raises:
            ValueError: it fails for all of them.
        """
        for row in self.stand_ins(epoch, number):
            result = attempt(lambda row=row: get(row), self.key(row), bad)
            if result is not None:
                return result
        height, width = self.target_of_sample(number)
        raise ValueError(
            f"data.{self.name}.source: no image of size {height} x {width} can be read; the last: {bad[-1].reason}"
        )

    def stand_ins(self, epoch: int, number: int) -> Iterator[int]:
        """A sample, and then those that take its place, in turn, if it cannot be read."""
        yield int(number)
        group = self.groups(epoch)[self.numbering.target_of(number)]
        rng = np.random.default_rng(derive(self.seed, f"{self.name}/stand-in", epoch, int(number)))
        yield from map(int, rng.permutation(group))

    def _caption_weights(self, item: int) -> Sequence[float] | None:
        weights = getattr(self.sources[self.items.source[item]], "caption_weights", None)
        return None if weights is None else weights(int(self.items.local[item]))
