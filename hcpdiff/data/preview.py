"""What a run will see of a dataset, before it runs: in numbers, and as a contact sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hcpdiff.data.dataset import Dataset
from hcpdiff.data.scan import BadFile, attempt
from hcpdiff.data.transforms import scaled_size
from hcpdiff.data.views import View
from hcpdiff.types import Prompt

_KEPT, _CUT_AWAY, _INK = (255, 80, 0), (0, 0, 0), (20, 20, 20)


@dataclass(frozen=True)
class BucketSummary:
    """One size of a dataset."""

    size: tuple[int, int]  # (height, width)
    images: int
    samples: int  # images times their repeats
    batches: int  # of an epoch
    crop_loss: float  # share of the area that cropping cuts away, on average
    enlarged: int  # images smaller than the size


@dataclass(frozen=True)
class Summary:
    """What `hcpdiff data` says of a dataset."""

    name: str
    images: int
    samples: int  # of an epoch
    batches: int  # of an epoch
    buckets: list[BucketSummary]
    captioned: int  # images that have a caption
    prompts: list[tuple[str, Prompt]] = field(default_factory=list)  # (key, prompt) of some samples
    bad: list[BadFile] = field(default_factory=list)

    @property
    def crop_loss(self) -> float:
        """Of all images."""
        return sum(bucket.crop_loss * bucket.images for bucket in self.buckets) / self.images

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.images} images ({self.captioned} with a caption), {self.samples} samples and "
            f"{self.batches} batches an epoch, {self.crop_loss:.1%} of the area is cut away"
        ]
        for bucket in self.buckets:
            enlarged = f", {bucket.enlarged} enlarged" if bucket.enlarged else ""
            lines.append(
                f"  {bucket.size[0]:>5} x {bucket.size[1]:<5} {bucket.images:>6} images {bucket.batches:>6} batches "
                f"{bucket.crop_loss:>6.1%} cut away{enlarged}"
            )
        for key, prompt in self.prompts:
            lines.append(
                f"  {key}: {prompt.positive!r}" + (f"   negative: {prompt.negative!r}" if prompt.negative else "")
            )
        lines += [f"  left out: {file.key}: {file.reason}" for file in self.bad]
        return "\n".join(lines)


def summarize(dataset: Dataset, *, prompts: int = 8) -> Summary:
    """Count what a prepared dataset holds, without decoding images; `prompts` are shown, of the first epoch."""
    samples, items = dataset.samples, dataset.samples.items
    epoch = dataset.epoch(0)
    first = epoch.samples[epoch.starts[:-1]]  # a sample of each batch
    batches = np.bincount(samples.target_of[samples.item_of[first]], minlength=len(samples.targets))
    ratios = items.sizes[:, 1] / items.sizes[:, 0]
    buckets = []
    for number, size in enumerate(samples.targets):
        chosen = samples.target_of == number
        ratio = ratios[chosen] * size[0] / size[1]
        buckets.append(
            BucketSummary(
                size=size,
                images=int(chosen.sum()),
                samples=len(samples.groups[number]),
                batches=int(batches[number]),
                crop_loss=float(1 - np.minimum(ratio, 1 / ratio).mean()),
                enlarged=int((items.sizes[chosen] < size).any(axis=1).sum()),
            )
        )
    bad = list(dataset.bad)
    return Summary(
        name=dataset.name,
        images=len(items),
        samples=len(dataset),
        batches=len(epoch),
        buckets=buckets,
        captioned=sum(any(samples.captions_or_none(item, bad) or ()) for item in range(len(items))),
        prompts=[
            (items.keys[samples.item_of[row]], samples.prompt(0, row))
            for row in epoch.samples[:prompts].tolist()
            if samples.captions_or_none(int(samples.item_of[row]), []) is not None
        ],
        bad=bad,
    )


def contact_sheet(
    dataset: Dataset, *, count: int = 24, columns: int = 6, epoch: int = 0, cell: int = 192
) -> Image.Image:
    """Samples of an epoch in their order: each whole image with the crop in a frame, its size and its prompt."""
    rows = dataset.epoch(epoch).samples[:count].tolist()
    cells = [_cell(dataset, epoch, row, cell) for row in rows]
    columns = max(1, min(columns, len(cells)))
    height = max(picture.height for picture in cells)
    sheet = Image.new("RGB", (columns * cell, -(-len(cells) // columns) * height), "white")
    for number, picture in enumerate(cells):
        sheet.paste(picture, (number % columns * cell, number // columns * height))
    return sheet


def _cell(dataset: Dataset, epoch: int, row: int, width: int) -> Image.Image:
    samples = dataset.samples
    item, view = int(samples.item_of[row]), samples.view(epoch, row)[0]
    edge = width - 12
    bad: list[BadFile] = []
    found = attempt(lambda: (samples.record(item).image, samples.prompt(epoch, row)), samples.items.keys[item], bad)
    if found is None:
        picture, text = Image.new("RGB", (edge, edge), (230, 200, 200)), f"cannot be read: {bad[0].reason}"
    else:
        picture, prompt = _framed(found[0], view, edge), found[1]
        text = prompt.positive + (f" | negative: {prompt.negative}" if prompt.negative else "")
    title = f"{samples.items.keys[item]}  {view.size.target[0]} x {view.size.target[1]}" + (
        "  mirrored" if view.flip else ""
    )
    canvas = Image.new("RGB", (width, width + 76), "white")
    canvas.paste(picture, ((width - picture.width) // 2, (width - picture.height) // 2))
    lines = [*_wrapped(title, width)[:2], *_wrapped(text, width)]
    ImageDraw.Draw(canvas).multiline_text((6, width), "\n".join(lines[:6]), fill=_INK, font=_font(), spacing=1)
    return canvas


def _framed(image: Image.Image, view: View, edge: int) -> Image.Image:
    """The whole image, with the part that is cut away darkened and the crop framed."""
    scaled = scaled_size(view.size.original, view.size.target)
    shrink = edge / max(image.size)
    small = image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))))
    tall, wide = small.height / scaled[0], small.width / scaled[1]
    box = (
        round(view.size.crop[1] * wide),
        round(view.size.crop[0] * tall),
        round((view.size.crop[1] + view.size.target[1]) * wide),
        round((view.size.crop[0] + view.size.target[0]) * tall),
    )
    result = Image.blend(small, Image.new("RGB", small.size, _CUT_AWAY), 0.6)
    result.paste(small.crop(box), box[:2])
    ImageDraw.Draw(result).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=_KEPT, width=2)
    return result


def _wrapped(text: str, width: int) -> Sequence[str]:
    return textwrap.wrap(text, max(8, (width - 12) // 6)) or [""]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=11)
