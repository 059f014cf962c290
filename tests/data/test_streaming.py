from __future__ import annotations

import io
import pickle
import random
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hcpdiff.data import FixedBucket, RatioBucket, RatioGridBucket, Record, TagShuffle
from hcpdiff.data.buckets import SizeBucket
from hcpdiff.data.scan import BadFile
from hcpdiff.data.sources.streamed import StreamItem, StreamSource, TarStream
from hcpdiff.data.sources.webdataset import WebDatasetSource
from hcpdiff.data.streaming.dataset import StreamDataset
from hcpdiff.data.streaming.online import Plan, batches, group_of, shuffled

SIZES = [(40, 40), (60, 30), (30, 60), (44, 40), (64, 30)]


class Pictures:
    """A stream of pictures whose colour is their number; it counts what it is asked for."""

    def __init__(self, count: int = 23, unusable: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> None:
        self.count, self.unusable, self.broken = count, unusable, broken
        self.decoded: list[int] = []
        self.starts: list[int] = []

    def iterate(self, start: int) -> Iterator[StreamItem | BadFile]:
        self.starts.append(start)
        for number in range(start, self.count):
            size = SIZES[number % len(SIZES)]
            if number in self.unusable:
                yield BadFile(str(number), "no image")
            else:
                load = partial(self._load, number, size)
                yield StreamItem(str(number), size, [f"a, b, c, {number}"], load)

    def _load(self, number: int, size: tuple[int, int], at_least: tuple[int, int] | None) -> Record:
        self.decoded.append(number)
        if number in self.broken:
            raise OSError("truncated")
        return Record(Image.new("RGB", size[::-1], (number, 0, 0)))


Make = Callable[..., StreamDataset]


@pytest.fixture
def make() -> Make:
    """A prepared dataset of a stream; its log is `.lines`."""

    def build(source: Any = None, bucket: Any = None, *, seed: int = 0, **options: Any) -> StreamDataset:
        dataset = StreamDataset(
            source or Pictures(),
            bucket or RatioGridBucket(32 * 32, num_buckets=3),
            **{"batch_size": 4, "buffer": 8, "shuffle": 5, "threads": 0, **options},
        )
        dataset.lines = []
        dataset.prepare(seed, "main", 8, dataset.lines.append)
        return dataset

    return build


def one_pass(dataset: StreamDataset, start: int = 0) -> tuple[list[str], int]:
    """The keys of the pass that begins at a batch, and the number of the batch after it."""
    keys: list[str] = []
    good = dataset.source.count - len(dataset.source.unusable)
    while len(keys) < good:
        keys += dataset.batch(start).keys
        start += 1
    return keys, start


@given(st.integers(0, 60), st.integers(0, 20), st.integers(0, 1000))
def test_a_shuffle_gives_every_item_once_and_holds_few(count: int, held: int, seed: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(count):
            taken += 1
            yield item

    given_, waiting = [], []
    for item in shuffled(items(), held, random.Random(seed)):
        given_.append(item)
        waiting.append(taken - len(given_))
    assert sorted(given_) == list(range(count))
    assert max(waiting, default=0) <= max(0, held - 1)
    assert held > 1 or given_ == list(range(count))


def test_a_shuffle_is_uniform_if_it_holds_all() -> None:
    seen = Counter(tuple(shuffled(range(4), 4, random.Random(seed))) for seed in range(4800))
    assert len(seen) == 24
    assert max(abs(n - 200) for n in seen.values()) < 70  # 5 standard deviations of a binomial of mean 200


@given(st.lists(st.integers(0, 4), max_size=120), st.integers(1, 5), st.integers(0, 30), st.booleans())
def test_every_item_is_in_one_batch_of_its_group(groups: list[int], size: int, more: int, shuffle: bool) -> None:
    buffer, taken, given_ = size + more, 0, 0

    def items() -> Iterator[tuple[int, int]]:
        nonlocal taken
        for number, group in enumerate(groups):
            taken += 1
            yield number, group

    seen: list[int] = []
    for batch in batches(items(), size, buffer):
        given_ += len(batch)
        assert 1 <= len(batch) <= size
        assert len({groups[number] for number in batch}) == 1
        assert batch == sorted(batch)
        assert taken - given_ < buffer
        seen += batch
    assert sorted(seen) == list(range(len(groups)))


def test_a_full_buffer_gives_its_largest_group() -> None:
    items = list(enumerate([0, 1, 1, 2, 3, 1]))
    assert list(batches(items, 4, 5)) == [[1, 2], [0], [3], [4], [5]]


def test_an_image_gets_the_size_of_its_shape_and_of_equal_shapes_that_of_its_area() -> None:
    targets = [(32, 32), (64, 64), (24, 48), (48, 24)]
    assert [group_of(size, targets) for size in ((100, 100), (40, 41), (20, 45), (90, 40))] == [1, 0, 2, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=10), st.integers(0, 12), st.integers(0, 50), st.data())
def test_a_batch_is_the_same_however_it_is_reached(
    count: int, unusable: set[int], shuffle: int, seed: int, data: st.DataObject
) -> None:
    if len(unusable & set(range(count))) == count:
        unusable = set()

    def plan() -> Plan:
        source = Pictures(count, tuple(unusable))
        targets = [(32, 32), (16, 32), (32, 16)]
        return Plan(source, targets, batch_size=3, buffer=7, shuffle=shuffle, seed=seed, name="x")

    def shown(plan: Plan, number: int) -> list[tuple[str, tuple[int, int], int]]:
        return [(row.item.key, row.target, row.number) for row in plan.batch(number)]

    straight = plan()
    expected, good = [], sorted(str(n) for n in set(range(count)) - unusable)
    while not expected or expected[-1][0][2] < 3:
        expected.append(shown(straight, len(expected)))
    for number in range(3):
        assert sorted(key for batch in expected for key, _, pass_number in batch if pass_number == number) == good
    jumping = plan()
    for _ in range(4):
        number = data.draw(st.integers(0, len(expected) - 1))
        assert shown(jumping, number) == expected[number]
        assert not jumping.source.decoded


def test_later_passes_are_entered_in_their_middle_without_reading_from_the_start() -> None:
    source = Pictures(1000)
    plan = Plan(source, [(32, 32)], batch_size=4, buffer=8, shuffle=10, seed=0, name="x")
    for number in range(251):
        plan.batch(number)
    source.starts.clear()
    plan.batch(2 * 250 + 200)
    assert source.starts == [pytest.approx(800 - 10, abs=10)]


def test_a_batch_is_what_its_type_says(make: Make) -> None:
    dataset = make(template=["photo of {caption}"])
    batch = dataset.batch(0)
    number = int(batch.keys[0])
    assert batch.images.shape == (len(batch), 3, *batch.sizes[0].target)
    assert batch.images[0, 0].mean().item() == pytest.approx(number / 127.5 - 1, abs=1e-6)
    assert batch.prompts[0].positive == f"photo of a, b, c, {number}"
    assert (batch.loss_mask, batch.encoded, dataset.batches_per_epoch) == (None, False, None)


def test_every_pass_shows_every_image_once_in_another_order(make: Make) -> None:
    dataset, start, orders = make(), 0, []
    for _ in range(3):
        keys, start = one_pass(dataset, start)
        assert sorted(keys, key=int) == [str(n) for n in range(23)]
        orders.append(keys)
    assert all(one != other for one, other in pairwise(orders))


def test_everything_is_a_function_of_seed_and_number_and_threads_change_nothing(make: Make) -> None:
    options = {"crop": "random", "flip": 0.5, "caption_transforms": [TagShuffle()]}
    one, threaded, other = make(**options), make(**options, threads=3), make(**options, seed=1)
    expected = [one.batch(number) for number in range(12)]
    for number in (*range(12), 5, 11, 2):
        batch = threaded.batch(number)
        assert torch.equal(batch.images, expected[number].images)
        assert (batch.keys, batch.prompts, batch.sizes) == (
            expected[number].keys,
            expected[number].prompts,
            expected[number].sizes,
        )
    assert [other.batch(number).keys for number in range(4)] != [batch.keys for batch in expected[:4]]
    first, second = (
        {key: (size, prompt) for b in part for key, size, prompt in zip(b.keys, b.sizes, b.prompts, strict=True)}
        for part in (expected[:6], expected[6:])
    )
    assert any(first[key] != second[key] for key in first.keys() & second.keys())


def test_resuming_reads_headers_and_decodes_only_what_is_shown(make: Make) -> None:
    source = Pictures(200)
    keys = make(source).batch(150).keys
    assert [str(number) for number in source.decoded] == keys


def test_epochs_are_whole_passes(make: Make) -> None:
    dataset, resumed = make(), make()
    _, first = one_pass(dataset)
    _, second = one_pass(dataset, first)
    for shown, passes in ((second + 1, 2), (0, 0), (first - 1, 0), (first, 1), (second - 1, 1), (second, 2)):
        assert dataset.epochs_in(shown) == passes
        assert resumed.epochs_in(shown) == passes
    assert resumed.source.decoded == []
    resumed.batch(second + 1)
    assert resumed.source.starts.count(0) == 2  # to prepare, and to plan; no look back needs another
    with pytest.raises(ValueError, match=r"data\.main: the length of a stream is not known"):
        dataset.epoch_length(0)


def test_variants_take_turns(make: Make) -> None:
    dataset = make(Pictures(6), FixedBucket(24), crop="random", variants=2)
    views: dict[str, list[Any]] = {}
    for number in range(12):
        batch = dataset.batch(number)
        for key, size in zip(batch.keys, batch.sizes, strict=True):
            views.setdefault(key, []).append(size)
    assert all(one[0] == one[2] == one[4] and one[1] == one[3] == one[5] for one in views.values())
    assert any(one[0] != one[1] for one in views.values())


def test_processes_share_a_batch(make: Make) -> None:
    whole, parts = make(), make()
    for number in range(8):
        expected = whole.batch(number).keys
        shares = [parts.batch(number, rank=rank, world_size=2) for rank in range(2)]
        assert len(shares[0]) == len(shares[1])
        shown = [key for pair in zip(shares[0].keys, shares[1].keys, strict=True) for key in pair]
        assert shown[: len(expected)] == expected
        if len(expected) % 2:
            assert shares[1].loss_mask[-1].max() == 0


def test_smaller_batches_can_be_padded_with_rows_of_no_loss(make: Make) -> None:
    dataset = make(underfilled="pad")
    all_batches = [dataset.batch(number) for number in range(9)]
    assert {len(batch) for batch in all_batches} == {4}
    padded = [batch for batch in all_batches if batch.loss_mask is not None]
    assert padded
    for batch in padded:
        weights = batch.loss_mask[:, 0, 0, 0]
        assert weights.mean().item() == pytest.approx(1)  # the mean over all rows is that of those that count
        assert len(set(batch.keys)) == int((weights > 0).sum())


def test_unusable_images_are_listed_once_and_passed_over(make: Make) -> None:
    dataset = make(Pictures(23, unusable=(0, 7, 22)))
    keys, after = one_pass(dataset)
    assert sorted(keys, key=int) == [str(n) for n in range(23) if n not in (0, 7, 22)]
    one_pass(dataset, after)
    assert [file.key for file in dataset.bad] == ["0", "7", "22"]
    assert sum("22 is left out: no image" in line for line in dataset.lines) == 1


@pytest.mark.parametrize("threads", [0, 2])
def test_what_cannot_be_decoded_is_listed_and_another_of_its_batch_is_shown(make: Make, threads: int) -> None:
    dataset = make(Pictures(23, broken=(3, 4)), threads=threads)
    keys = [key for number in range(9) for key in dataset.batch(number).keys]
    assert {file.key for file in dataset.bad} == {"3", "4"}
    assert "truncated" in dataset.bad[0].reason
    assert not {"3", "4"} & set(keys)


def test_a_batch_that_cannot_be_decoded_at_all_shows_the_next(make: Make) -> None:
    dataset = make(Pictures(23, broken=(5, 6)), batch_size=1, shuffle=0)
    keys = [dataset.batch(number).keys[0] for number in range(10)]
    assert keys == ["0", "1", "2", "3", "4", "7", "7", "7", "8", "9"]


def test_too_many_bad_images_stop_the_run(make: Make) -> None:
    dataset = make(Pictures(23, broken=tuple(range(5, 23))), max_bad=3)
    with pytest.raises(ValueError, match=r"data\.main\.source: \d+ of 23 images cannot be used|data\.main\.source: "):
        one_pass(dataset)
    with pytest.raises(ValueError, match=r"data\.main\.source: 3 of 3 images cannot be used"):
        make(Pictures(3, unusable=(0, 1, 2)))
    with pytest.raises(ValueError, match=r"data\.main\.source: it has no images"):
        make(Pictures(0))
    with pytest.raises(ValueError, match=r"no image of 8 batches in a row can be read; the last, .*: truncated"):
        make(Pictures(40, broken=tuple(range(40))), max_bad=100).batch(0)


def test_a_stream_that_changes_is_an_error(make: Make) -> None:
    dataset = make(Pictures(23))
    _, after = one_pass(dataset)
    dataset.source.count = 10
    with pytest.raises(ValueError, match=r"data\.main\.source: item 1\d is no longer there"):
        one_pass(dataset, after)


def test_any_bucket_is_fitted_to_the_first_images(make: Make) -> None:
    dataset = make(bucket=RatioBucket(32 * 32, num_buckets=2))
    assert len(dataset.targets) == 2
    assert make(bucket=FixedBucket(24)).batch(0).images.shape[-2:] == (24, 24)
    assert len(make(bucket=RatioGridBucket(1024, num_buckets=5)).targets) == 5
    assert "a stream, cut to" in dataset.lines[0]
    with pytest.raises(ValueError, match=r"data\.main\.bucket\.size: the model needs sides that divide by 8"):
        make(bucket=FixedBucket(20))
    with pytest.raises(ValueError, match=r"data\.main\.bucket\.SizeBucket is not for streams"):
        make(bucket=SizeBucket())


class _Busy:
    """A transform that notices if two threads are in it at once."""

    def __init__(self) -> None:
        self.inside = threading.Lock()

    def __call__(self, image: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
        assert self.inside.acquire(blocking=False)
        result = np.sort(image[::-1], axis=0)
        self.inside.release()
        return {"image": result, **others}


def test_transforms_are_never_in_two_threads_at_once(make: Make) -> None:
    dataset = make(Pictures(60), threads=4, batch_size=8, buffer=40, transforms=_Busy())
    keys = [key for number in range(8) for key in dataset.batch(number).keys]
    assert dataset.bad == []
    assert len(keys) > 30


def test_another_process_starts_its_own_threads(make: Make) -> None:
    dataset = make(caption_transforms=[TagShuffle()], threads=2)
    dataset.source.decoded = []
    expected = dataset.batch(3)
    dataset.lines = None
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.batch(3).images, expected.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 is too few"),
        ({"buffer": 3}, "buffer: 3 is less than a batch"),
        ({"shuffle": -1}, "shuffle: -1 is too few"),
        ({"threads": -1}, "threads: -1 is too few"),
        ({"underfilled": "drop"}, "underfilled: 'drop' is not for streams"),
        ({"weight": 0}, "weight: 0 would never draw"),
        ({"to_step": 5, "from_step": 5}, "to_step: from step 5 to 5 are no steps"),
        ({"source": [1]}, "source: list is no stream; use TarStream"),
        ({"bucket": [FixedBucket(32)]}, "bucket: a list of buckets needs to know all images"),
        ({"bucket": RatioGridBucket(1024, max_upscale=1.5)}, "bucket: max_upscale needs to know all images"),
    ],
)
def test_wrong_settings_are_named(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Twelve samples in three archives; the image of number 5 is broken."""
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(4 * shard, 4 * shard + 4):
                file = io.BytesIO()
                Image.new("RGB", SIZES[number % 5][::-1], (number, 0, 0)).save(file, "png")
                content = b"broken" if number == 5 else file.getvalue()
                for suffix, data in (("png", content), ("txt", f"number {number}".encode())):
                    member = tarfile.TarInfo(f"{number:03}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"{tmp_path}/{{0..2}}.tar"


@pytest.mark.parametrize("start", [0, 3, 4, 9, 12])
def test_a_stream_of_archives_gives_what_their_source_gives(shards: str, start: int) -> None:
    source, stream = WebDatasetSource(shards), TarStream(shards)
    assert isinstance(stream, StreamSource)
    items = list(stream.iterate(start))
    assert [item.key for item in items] == [source.key(index) for index in range(start, 12)]
    for index, item in enumerate(items, start):
        if index == 5:
            assert isinstance(item, BadFile)
        else:
            assert (item.size, item.captions) == (source.size(index), source.captions(index))
            assert item.load(None).image.tobytes() == source.load(index).image.tobytes()


def test_archives_are_trained_on_as_a_stream(make: Make, shards: str) -> None:
    dataset = make(TarStream(shards), threads=2, batch_size=2)
    keys: list[str] = []
    number = 0
    while len(keys) < 11:
        keys += dataset.batch(number).keys
        number += 1
    assert sorted(keys) == sorted(f"{n // 4}/{n:03}" for n in range(12) if n != 5)
    assert [file.key for file in dataset.bad] == ["1/005"]
