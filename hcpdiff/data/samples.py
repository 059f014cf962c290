"""The numbered samples of an epoch, and what each of them looks like in which epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from hcpdiff.data.buckets import Assignment
from hcpdiff.data.captioning import Captioning
from hcpdiff.data.scan import BadFile, Items, attempt
from hcpdiff.data.sources.base import Record, Source
from hcpdiff.data.transforms import Augment, Cut, augment, cut, image_tensor, scaled_size, unit_tensor
from hcpdiff.data.views import View, Views
from hcpdiff.randomness import derive, python_random
from hcpdiff.types import Prompt, Sample

T = TypeVar("T")


class Samples:
    """Items, each as often as it repeats. Sample n of epoch e is a pure function of (seed, name, e, n)."""

    def __init__(
        self,
        sources: Sequence[Source],
        items: Items,
        assignment: Assignment,
        views: Views,
        captioning: Captioning,
        transforms: Augment | None,
        *,
        seed: int,
        name: str,
    ) -> None:
        self.sources = sources
        self.items = items
        self.targets = assignment.targets
        self.target_of = assignment.index
        self.views = views
        self.captioning = captioning
        self.transforms = transforms
        self.seed = seed
        self.name = name
        copies = items.repeats
        self.item_of = np.repeat(np.arange(len(items)), copies)
        self.copy_of = np.arange(len(self.item_of)) - (np.cumsum(copies) - copies)[self.item_of]
        target_of_sample = self.target_of[self.item_of]
        self.groups = [np.flatnonzero(target_of_sample == target) for target in range(len(self.targets))]
        self._fixed_prompts: dict[int, Prompt | None] = {}

    def __len__(self) -> int:
        return len(self.item_of)

    def sample(self, epoch: int, number: int) -> Sample:
        """Decode and cut a sample.

        Raises:
            Exception: of nearly any kind, if its file is broken.
        """
        item = int(self.item_of[number])
        prompt = self.prompt(epoch, number)
        example = self.cut(item, self.view(epoch, number)[0])
        return Sample(
            key=self.items.keys[item],
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
            self._fixed_prompts[item] = self.captioning.only(self.captions(item))
        fixed = self._fixed_prompts[item]
        if fixed is not None:
            return fixed
        return self.captioning.draw(
            self.captions(item), python_random(self.seed, f"{self.name}/prompt", epoch, int(number))
        )

    def captions(self, item: int) -> Sequence[str]:
        """The captions of an item."""
        return self.sources[self.items.source[item]].captions(int(self.items.local[item]))

    def captions_or_none(self, item: int, bad: list[BadFile]) -> Sequence[str] | None:
        """The captions of an item; None, and a line in `bad`, if they cannot be read."""
        return attempt(lambda: self.captions(item), self.items.keys[item], bad)

    def all_prompts(self) -> set[Prompt] | None:
        """Every prompt that a run can see; None if they are endless, or far more than there are samples."""
        prompts: set[Prompt] = set()
        for item in range(len(self.items)):
            captions = self.captions_or_none(item, [])
            possible = set() if captions is None else self.captioning.outcomes(captions)
            if possible is None or len(prompts) > 4 * len(self) + 1000:
                return None
            prompts |= possible
        return prompts

    def view(self, epoch: int, number: int) -> tuple[View, int]:
        """How a sample is cut, and which variant of its item that is."""
        item = int(self.item_of[number])
        if self.views.countable is None:
            seed = derive(self.seed, f"{self.name}/view", epoch, int(number))
            return self.views.drawn(seed, self.original(item), self.target(item)), 0
        variant = self.variant(epoch, number)
        return self.variant_view(item, variant), variant

    def variant(self, epoch: int, number: int) -> int:
        """Which of the countable views of its item a sample shows."""
        item = int(self.item_of[number])
        showing = epoch * int(self.items.repeats[item]) + int(self.copy_of[number])
        return self.views.variant(self.items.keys[item], showing)

    def variant_view(self, item: int, variant: int) -> View:
        """One of the countable views of an item."""
        return self.views.fixed(self.items.keys[item], variant, self.original(item), self.target(item))

    def original(self, item: int) -> tuple[int, int]:
        """(height, width) of the file."""
        height, width = self.items.sizes[item].tolist()
        return height, width

    def target(self, item: int) -> tuple[int, int]:
        """(height, width) that an item is cut to."""
        return self.targets[self.target_of[item]]

    def record(self, item: int, at_least: tuple[int, int] | None = None) -> Record:
        """Decode an item."""
        return self.sources[self.items.source[item]].load(int(self.items.local[item]), at_least)

    def cut(self, item: int, view: View) -> Cut:
        """Decode an item and cut it."""
        record = self.record(item, scaled_size(view.size.original, view.size.target))
        example = cut(record, view.size, flip=view.flip)
        return example if self.transforms is None else augment(example, self.transforms, view.seed or 0)

    def first_that_works(self, epoch: int, number: int, get: Callable[[int], T], bad: list[BadFile]) -> T:
        """What `get` gives for a sample; if that fails, for another of its size, drawn by (seed, epoch, number).

        Raises:
            ValueError: it fails for all of them.
        """
        for row in self._stand_ins(epoch, number):
            result = attempt(lambda row=row: get(row), self.items.keys[self.item_of[row]], bad)
            if result is not None:
                return result
        height, width = self.target(int(self.item_of[number]))
        raise ValueError(
            f"data.{self.name}.source: no image of size {height} x {width} can be read; the last: {bad[-1].reason}"
        )

    def _stand_ins(self, epoch: int, number: int) -> Iterator[int]:
        yield int(number)
        group = self.groups[self.target_of[self.item_of[number]]]
        rng = np.random.default_rng(derive(self.seed, f"{self.name}/stand-in", epoch, int(number)))
        yield from rng.permutation(group).tolist()
