"""What a dataset holds, in numbers, without decoding an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hcpdiff.data.scan import BadFile
from hcpdiff.data.seeing.geometry import Geometry

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

CAPTIONS_READ = 20_000  # of more images than this, as many are asked for captions, evenly spread


@dataclass(frozen=True)
class BucketSummary:
    """One size of a dataset."""

    size: tuple[int, int]  # (height, width)
    images: int
    samples: int  # of the first epoch
    batches: int  # of the first epoch
    partial: int  # batches that are not full
    crop_loss: float  # share of the area that cropping cuts away, on average
    enlarged: int  # images smaller than the size


@dataclass(frozen=True)
class EpochSummary:
    """What one epoch holds."""

    number: int  # from 0
    samples: int  # all that it could show
    shown: int  # all that it shows
    batches: int
    partial: int  # batches that are not full
    padded: int  # rows that only fill a batch and have no loss

    @property
    def again(self) -> int:
        """How many are shown once more, to fill batches."""
        return max(0, self.shown - self.samples)

    @property
    def left_out(self) -> int:
        """How many are not shown, as they fill no batch."""
        return max(0, self.samples - self.shown)


@dataclass(frozen=True)
class Summary:
    """A dataset in numbers."""

    name: str
    images: int
    captioned: int  # of those that were asked
    asked: int  # how many images were asked for captions
    sizes: list[tuple[int, int]]  # (height, width) of the smallest, the middle and the largest image, by area
    repeats: tuple[float, float]  # the least and the most
    buckets: list[BucketSummary]
    epochs: list[EpochSummary]
    crop_loss: float  # share of the area of all images that is cut away
    enlarged: int
    bad: list[BadFile]

    @property
    def without_caption(self) -> int:
        """Of those that were asked."""
        return self.asked - self.captioned

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *self.rows()])

    def lines(self) -> list[str]:
        """Six lines: images, their sizes, what they are cut to, an epoch, how often each is shown, problems."""
        first, sizes = self.epochs[0], ", ".join(_size(bucket.size) for bucket in self.buckets[:6])
        more = f" and {len(self.buckets) - 6} more" if len(self.buckets) > 6 else ""
        small, middle, large = map(_size, self.sizes)
        asked = "" if self.asked == self.images else f" of {self.asked:,} looked at"
        return [
            f"{self.name}: {_count(self.images, 'image')}, {self.captioned:,}{asked} with a caption",
            f"  they are      {small} to {large}, half of them at least {middle}",
            f"  cut to        {sizes}{more}; {self.crop_loss:.1%} of the area is cut away, "
            f"{_count(self.enlarged, 'image')} enlarged",
            f"  an epoch is   {_count(first.shown, 'sample')} in {_count(first.batches, 'batch', 'batches')}"
            + (f", {first.partial:,} of them not full" if first.partial else ""),
            f"  each image    {self._repeats()}",
            f"  problems      {self._problems()}",
        ]

    def rows(self) -> list[str]:
        """A line for each size, and one for each image that is left out."""
        rows = []
        for bucket in self.buckets:
            enlarged = f", {bucket.enlarged:,} enlarged" if bucket.enlarged else ""
            rows.append(
                f"  {bucket.size[0]:>5} x {bucket.size[1]:<5} {bucket.images:>8,} images {bucket.batches:>8,} batches "
                f"{bucket.crop_loss:>6.1%} cut away{enlarged}"
            )
        return rows + [f"  left out: {file.key}: {file.reason}" for file in self.bad]

    def _repeats(self) -> str:
        least, most = self.repeats
        often = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        text = "once an epoch" if often == "1" else f"{often} times an epoch"
        if len(self.buckets) and sum(bucket.images for bucket in self.buckets) > self.images:
            text += " at each of its sizes"
        first = self.epochs[0]
        if first.left_out:
            return f"{text}, but {first.left_out:,} fill no batch and are left out, others each epoch"
        if first.again:
            return f"{text}, and {first.again:,} once more to fill batches, others each epoch"
        if first.padded:
            return f"exactly {text}; {first.padded:,} rows without loss fill batches"
        return f"exactly {text}"

    def _problems(self) -> str:
        found = []
        if self.bad:
            found.append(f"{len(self.bad):,} unreadable")
        if self.enlarged:
            found.append(f"{self.enlarged:,} smaller than what they are cut to")
        if self.without_caption:
            found.append(f"{self.without_caption:,} without a caption")
        return ", ".join(found) or "none found without decoding"


def summarize(dataset: Dataset, *, epochs: int = 3) -> Summary:
    """Count what a prepared dataset holds.

    Args:
        epochs: how many to plan if they differ, as with fractional repeats; one is enough otherwise.
    """
    samples, items, geometry = dataset.samples, dataset.samples.items, Geometry(dataset)
    planned = [_epoch(dataset, number) for number in range(1 if samples.steady else epochs)]
    asked = spread(len(items), CAPTIONS_READ)
    captioned = sum(any(samples.captions_or_none(item, []) or ()) for item in asked.tolist())
    return Summary(
        name=dataset.name,
        images=len(items),
        captioned=captioned,
        asked=len(asked),
        sizes=_least_middle_most(items.sizes),
        repeats=(float(items.repeats.min()), float(items.repeats.max())),
        buckets=_buckets(dataset, geometry),
        epochs=planned,
        crop_loss=float(geometry.mean_crop_loss.mean()),
        enlarged=int((geometry.enlargement > 1).any(axis=1).sum()),
        bad=list(dataset.bad),
    )


def summary_lines(dataset: Dataset) -> list[str]:
    """Six lines about a prepared dataset, for the log of a run."""
    first, *rest = summarize(dataset, epochs=1).lines()
    return [f"data.{first}", *rest]


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` of the numbers 0 to total - 1, evenly spread."""
    return np.arange(total) if total <= count else np.arange(count) * total // count


def _epoch(dataset: Dataset, number: int) -> EpochSummary:
    epoch = dataset.epoch(number)
    return EpochSummary(
        number=number,
        samples=int(dataset.samples.group_sizes(number).sum()),
        shown=int(epoch.real.sum()),
        batches=len(epoch),
        partial=int((epoch.real < dataset.batch_size).sum()),
        padded=len(epoch.samples) - int(epoch.real.sum()),
    )


def _buckets(dataset: Dataset, geometry: Geometry) -> list[BucketSummary]:
    epoch, samples = dataset.epoch(0), dataset.samples
    count = len(samples.targets)
    target_of = np.zeros(len(samples), dtype=np.int32)
    for number, group in enumerate(samples.groups(0)):
        target_of[group] = number
    target_of_batch = target_of[epoch.samples[epoch.starts[:-1]]]  # that of its first sample
    batches = np.bincount(target_of_batch, minlength=count)
    partial = np.bincount(target_of_batch[epoch.real < dataset.batch_size], minlength=count)
    held = samples.group_sizes(0)
    buckets = []
    for number, size in enumerate(samples.targets):
        chosen = geometry.index == number
        buckets.append(
            BucketSummary(
                size=size,
                images=int(chosen.any(axis=1).sum()),
                samples=int(held[number]),
                batches=int(batches[number]),
                partial=int(partial[number]),
                crop_loss=float(geometry.crop_loss[chosen].mean()) if chosen.any() else 0.0,
                enlarged=int((geometry.enlargement[chosen] > 1).sum()),
            )
        )
    return buckets


def _least_middle_most(sizes: np.ndarray) -> list[tuple[int, int]]:
    order = np.argsort(sizes[:, 0].astype(np.int64) * sizes[:, 1], kind="stable")
    return [(int(sizes[n, 0]), int(sizes[n, 1])) for n in (order[0], order[len(order) // 2], order[-1])]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
