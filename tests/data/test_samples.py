from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from hcpdiff.data import Dataset, FixedBucket, RatioBucket, Record
from hcpdiff.data import samples as samples_module
from hcpdiff.data.buckets import Assignment, SizeBucket
from hcpdiff.data.images.augment import Pipeline
from hcpdiff.data.images.views import Views
from hcpdiff.data.prompts.captioning import Captioning
from hcpdiff.data.samples import Samples
from hcpdiff.data.scan import BadFile, Items


class Plain:
    """Grey images of given sizes, brighter by number, with captions and repeats of your choice."""

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        repeat: float | Sequence[float] = 1,
        captions: Sequence[str] = ("a", "b"),
        weights: Sequence[float] | None = None,
    ) -> None:
        self.shapes, self.repeat, self.words, self.weights = list(sizes), repeat, captions, weights

    def __len__(self) -> int:
        return len(self.shapes)

    def key(self, index: int) -> str:
        return f"{index}.png"

    def size(self, index: int) -> tuple[int, int]:
        return self.shapes[index]

    def captions(self, index: int) -> Sequence[str]:
        return self.words

    def caption_weights(self, index: int) -> Sequence[float] | None:
        return self.weights

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        height, width = self.shapes[index]
        return Record(Image.new("RGB", (width, height), (10 * index + 10,) * 3))


def samples_of(
    source: Plain, assignment: Assignment, views: Views | None = None, pipeline: Pipeline | None = None
) -> Samples:
    numbers = np.arange(len(source), dtype=np.int32)
    repeats = np.broadcast_to(np.asarray(source.repeat, dtype=np.float64), (len(source),))
    items = Items([source], np.zeros_like(numbers), numbers, np.array(source.shapes, dtype=np.int32), repeats)
    return Samples([source], items, assignment, views or Views(), Captioning(), pipeline, seed=0, name="main")


TWO = Assignment([(64, 64), (32, 32), (32, 48)], np.array([[0, 1], [-1, 1], [0, 2]], dtype=np.int32))
SIZES = [(100, 80), (40, 40), (60, 90)]


def test_samples_are_items_at_each_size_as_often_as_they_repeat() -> None:
    samples = samples_of(Plain(SIZES, [1, 2, 1]), TWO)
    shown = [(samples.key(n), samples.target_of_sample(n)) for n in range(len(samples))]
    assert shown == [
        *(("0.png", (64, 64)), ("0.png", (32, 32))),
        *(("1.png", (32, 32)), ("1.png", (32, 32))),
        *(("2.png", (64, 64)), ("2.png", (32, 48))),
    ]
    assert [group.tolist() for group in samples.groups(0)] == [[0, 4], [1, 2, 3], [5]]
    assert samples.group_sizes(7).tolist() == [2, 3, 1]
    assert samples.steady
    assert samples.sample(0, 5).image.shape == (3, 32, 48)


def test_variants_are_resolutions_times_views() -> None:
    samples = samples_of(Plain(SIZES), TWO, Views("random", 0.5, variants=3))
    assert samples.variants == 6
    assert samples.variants_of(0) == [0, 1, 2, 3, 4, 5]
    assert samples.variants_of(1) == [3, 4, 5]
    assert [samples.variant_target(2, variant) for variant in (0, 2, 3, 5)] == [(64, 64)] * 2 + [(32, 48)] * 2
    assert samples.variant_target(1, 0) == (32, 32)  # it lacks the first resolution
    for number in range(len(samples)):
        item = int(samples.item_of[number])
        seen = [samples.variant(epoch, number) for epoch in range(6)]
        assert seen[:3] == seen[3:]
        assert len(set(seen)) == 3  # they take turns
        assert set(seen) <= set(samples.variants_of(item))
        for epoch, variant in enumerate(seen):
            view = samples.view(epoch, number)
            assert view == (samples.variant_view(item, variant), variant)
            assert view[0].size.target == samples.target_of_sample(number)


def test_variants_take_turns_over_fractional_repeats() -> None:
    samples = samples_of(
        Plain(SIZES, 0.4), Assignment([(32, 32)], np.zeros(3, dtype=np.int32)), Views("random", variants=2)
    )
    shown = [(int(n), samples.variant(epoch, n)) for epoch in range(40) for n in samples.groups(epoch)[0]]
    for item in range(3):
        variants = [variant for number, variant in shown if number == item]
        assert len(variants) in (15, 16, 17)
        assert variants in ([k % 2 for k in range(len(variants))], [(k + 1) % 2 for k in range(len(variants))])


def test_endless_views_differ_between_samples_and_epochs() -> None:
    samples = samples_of(Plain([(100, 80)], 3), Assignment([(16, 16)], np.zeros(1, dtype=np.int32)), Views("random"))
    assert samples.variants is None
    views = [samples.view(epoch, number) for epoch in range(3) for number in range(3)]
    assert all(variant == 0 for _, variant in views)
    assert len({view.size.crop for view, _ in views}) > 3
    assert samples.view(2, 1) == samples.view(2, 1)


def test_captions_are_drawn_by_their_weights() -> None:
    one = Assignment([(32, 32)], np.zeros(3, dtype=np.int32))
    weighted = samples_of(Plain(SIZES, captions=("a", "b"), weights=[1, 3]), one)
    even = samples_of(Plain(SIZES), one)
    counts = [Counter(s.prompt(epoch, 0).positive for epoch in range(2000))["b"] for s in (weighted, even)]
    assert counts == [pytest.approx(1500, abs=80), pytest.approx(1000, abs=90)]  # four standard deviations


def test_few_prompts_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "_PROMPTS", 4)
    sizes = [(8, 8)] * 20
    samples = samples_of(Plain(sizes, captions=["only"]), Assignment([(8, 8)], np.zeros(20, dtype=np.int32)))
    assert [samples.prompt(0, n).positive for n in range(20)] == ["only"] * 20
    assert list(samples._fixed_prompts) == [16, 17, 18, 19]


def test_a_broken_image_is_replaced_by_one_of_its_size() -> None:
    samples = samples_of(Plain(SIZES), TWO)
    bad: list[BadFile] = []

    def broken(number: int) -> int:
        if number == 2:
            raise OSError("broken")
        return number

    assert samples.first_that_works(0, 2, broken, bad) == 1  # the other of 32 x 32
    assert [file.key for file in bad] == ["1.png"]
    with pytest.raises(ValueError, match=r"data.main.source: no image of size 32 x 48 can be read; the last: .*gone"):
        samples.first_that_works(0, 4, lambda number: (_ for _ in ()).throw(OSError("gone")), bad)


Prepare = Callable[..., Dataset]


@pytest.fixture
def prepare() -> Prepare:
    def build(source: Plain, bucket: object, **options: object) -> Dataset:
        dataset = Dataset(source, bucket, **{"batch_size": 4, **options})
        dataset.lines = []
        dataset.prepare(seed=3, name="main", multiple_of=8, log=dataset.lines.append)
        return dataset

    return build


def shown(dataset: Dataset, epoch: int) -> Counter[tuple[str, tuple[int, int]]]:
    """How often an epoch shows each image at each size."""
    start = dataset.epochs.first_batch(epoch)
    batches = [dataset.batch(start + number) for number in range(dataset.epochs.batches(epoch))]
    return Counter((key, size.target) for batch in batches for key, size in zip(batch.keys, batch.sizes, strict=True))


def test_a_dataset_of_several_resolutions_shows_each_image_at_each(prepare: Prepare) -> None:
    dataset = prepare(Plain(SIZES, 2), [RatioBucket(64 * 64, max_upscale=1), FixedBucket(16)])
    assert shown(dataset, 0) == {
        ("0.png", (72, 56)): 2,
        ("2.png", (56, 80)): 2,
        **{(f"{n}.png", (16, 16)): 2 for n in range(3)},  # the second is too small for 64 x 64
    }


def test_images_that_are_too_small_are_listed_as_bad(prepare: Prepare) -> None:
    dataset = prepare(Plain(SIZES), RatioBucket(64 * 64, max_upscale=1, min_side=48))
    assert [file.key for file in dataset.bad] == ["1.png"]
    assert any("1.png is left out: 40 x 40 is too small" in line for line in dataset.lines)
    assert {key for key, _ in shown(dataset, 0)} == {"0.png", "2.png"}
    with pytest.raises(ValueError, match="3 of 3 images cannot be used"):
        prepare(Plain(SIZES), FixedBucket(512, max_upscale=2))


def test_padding_has_no_loss_and_pixels_are_kept(prepare: Prepare) -> None:
    dataset = prepare(Plain([(20, 24), (40, 44), (40, 44)]), SizeBucket(num_buckets=1))
    batch = dataset.batch(0)
    assert batch.images.shape == (3, 3, 32, 40)  # the means are 33.3 and 37.3
    row = batch.keys.index("0.png")
    assert batch.loss_mask is not None
    assert batch.loss_mask[row].sum() == 20 * 24
    assert (batch.loss_mask[row, :, :20, :24] == 1).all()
    assert torch.equal(batch.images[row, :, :20, :24], torch.full((3, 20, 24), 10 / 127.5 - 1))
    other = batch.keys.index("1.png")
    assert (batch.loss_mask[other] == 1).all()


def test_merging_gives_up_sizes_that_fill_no_batch(prepare: Prepare) -> None:
    sizes = [(64, 64)] * 9 + [(64, 80)]
    bucket = RatioBucket(64 * 64, num_buckets=2)
    assert prepare(Plain(sizes), bucket).samples.targets == [(64, 64), (56, 72)]
    merged = prepare(Plain(sizes), bucket, underfilled="merge")
    assert merged.samples.targets == [(64, 64)]
    assert shown(merged, 0) == {(f"{n}.png", (64, 64)): 1 for n in range(10)}


def test_a_fractional_repeat_shows_an_image_in_some_epochs(prepare: Prepare) -> None:
    source = Plain([(32, 32)] * 12, [0.5] * 6 + [1] * 6)
    dataset = prepare(source, FixedBucket(32))
    epochs = [shown(dataset, epoch) for epoch in range(4)]
    total = sum(epochs, Counter())
    assert all(total[f"{n}.png", (32, 32)] == 2 for n in range(6))
    assert all(epoch[f"{n}.png", (32, 32)] == 1 for epoch in epochs for n in range(6, 12))
    assert len({epoch.total() for epoch in epochs}) == 2
    assert epochs[0] == epochs[2] != epochs[1]


@pytest.mark.parametrize("underfilled", ["keep", "pad", "repeat", "drop", "merge"])
def test_batches_of_a_fresh_run_and_of_all_processes_are_the_same(prepare: Prepare, underfilled: str) -> None:
    options = {"underfilled": underfilled, "crop": "random", "flip": 0.5}
    bucket = [RatioBucket(32 * 32, num_buckets=2), FixedBucket(16)]

    def fresh() -> Dataset:
        return prepare(Plain([(48, 40)] * 7 + [(40, 60)] * 4, [0.5, 1.3] * 5 + [2]), bucket, **options)

    dataset = fresh()
    first = [dataset.batch(number) for number in range(12)]
    for number in (5, 11):
        later = fresh().batch(number)
        assert later.keys == first[number].keys
        assert torch.equal(later.images, first[number].images)
        parts = [fresh().batch(number, rank=rank, world_size=2) for rank in range(2)]
        together = [key for keys in zip(*(part.keys for part in parts), strict=True) for key in keys]
        assert together[: len(first[number])] == first[number].keys
        images = torch.stack([part.images for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(images[: len(first[number])], first[number].images)
