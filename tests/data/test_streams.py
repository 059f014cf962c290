from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from hcpdiff.data import Dataset, FolderSource, RatioBucket, Streams, TagShuffle
from hcpdiff.data.streams import Mode, ahead
from hcpdiff.train.settings import TrainSettings
from hcpdiff.types import Batch

Make = Callable[..., Dataset]
OPTIONS = {"bucket": RatioBucket(1024, num_buckets=3), "crop": "random", "flip": 0.5}


def take(streams: Streams, start: int, count: int) -> list[dict[str, Batch]]:
    return list(islice(streams.batches(start), count))


def assert_equal(one: list[dict[str, Batch]], other: list[dict[str, Batch]]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert list(left) == list(right)
        for name in left:
            assert torch.equal(left[name].images, right[name].images)
            assert left[name].keys == right[name].keys
            assert left[name].prompts == right[name].prompts


def two(make: Make) -> dict[str, Dataset]:
    return {
        "main": make(**OPTIONS, caption_transforms=[TagShuffle()], weight=3.0),
        "regularisation": make(name="regularisation", batch_size=2),
    }


def test_parallel_gives_a_batch_of_every_dataset_each_step(make: Make) -> None:
    datasets = {"main": make(), "regularisation": make(name="regularisation", batch_size=2)}
    for step, batches in enumerate(take(Streams(datasets), 0, 8)):
        assert list(batches) == ["main", "regularisation"]
        assert batches["main"].keys == datasets["main"].batch(step).keys
        assert batches["regularisation"].keys == datasets["regularisation"].batch(step).keys


def test_mix_gives_one_dataset_each_step_by_weight_and_each_its_batches_in_order(make: Make) -> None:
    draws = list(islice(Streams(two(make), mode="mix", seed=3).draws(), 3000))
    assert all(len(draw) == 1 for draw in draws)
    share = Counter(name for draw in draws for name in draw)["main"] / 3000
    assert share == pytest.approx(0.75, abs=0.03)  # a standard error of 0.008
    for name in ("main", "regularisation"):
        numbers = [draw[name] for draw in draws if name in draw]
        assert numbers == list(range(len(numbers)))


def test_sequential_gives_each_dataset_a_whole_epoch_and_goes_around(make: Make) -> None:
    datasets = {"main": make(), "regularisation": make(name="regularisation", batch_size=2)}
    streams = Streams(datasets, mode="sequential")
    lengths = {name: dataset.batches_per_epoch for name, dataset in datasets.items()}
    lap = [name for name, length in lengths.items() for _ in range(length)]
    draws = list(islice(streams.draws(), 2 * len(lap)))
    assert [name for draw in draws for name in draw] == lap + lap
    assert [draw["main"] for draw in draws if "main" in draw] == list(range(2 * lengths["main"]))
    assert streams.epoch(streams.shown(len(lap))) == 1


def windows(make: Make) -> dict[str, Dataset]:
    return {
        "first": make(to_step=4),
        "second": make(name="second", from_step=2, to_step=6, batch_size=2),
        "last": make(name="last", from_step=5),
    }


def test_datasets_take_part_from_and_to_an_optimizer_step(make: Make) -> None:
    draws = list(islice(Streams(windows(make), accumulate=2).draws(), 14))
    taking_part = [["first"]] * 4 + [["first", "second"]] * 4 + [["second"]] * 2 + [["second", "last"]] * 2
    assert [list(draw) for draw in draws] == [*taking_part, ["last"], ["last"]]
    assert [draw["second"] for draw in draws if "second" in draw] == list(range(8))


@pytest.mark.parametrize("mode", ["mix", "sequential"])
def test_windows_hold_in_every_mode(make: Make, mode: Mode) -> None:
    draws = list(islice(Streams(windows(make), mode=mode).draws(), 40))
    for step, draw in enumerate(draws):
        (name,) = draw
        assert {"first": step < 4, "second": 2 <= step < 6, "last": step >= 5}[name]


def test_a_step_without_a_dataset_is_an_error(make: Make) -> None:
    datasets = {"first": make(to_step=2), "last": make(name="last", from_step=5)}
    with pytest.raises(ValueError, match=r"data: no dataset takes part in step 3; look at from_step and to_step"):
        list(islice(Streams(datasets).draws(), 3))


@pytest.mark.parametrize(("steps", "missing"), [(2, None), (3, 3), (9, 3)])
def test_a_run_with_such_a_step_is_refused_before_it_starts(make: Make, steps: int, missing: int | None) -> None:
    datasets = {"last": make(name="last", from_step=5), "first": make(to_step=2)}
    settings = TrainSettings(steps=steps, optimizer=torch.optim.SGD)
    expected = f"data: no dataset takes part in step {missing} of {steps}; "
    with nullcontext() if missing is None else pytest.raises(ValueError, match=expected):
        settings.check_datasets(datasets)
        settings.check_datasets({"all": make(to_step=steps)})


def test_an_epoch_of_the_run_has_shown_every_image(make: Make) -> None:
    datasets = {"main": make(), "regularisation": make(name="regularisation", batch_size=2)}
    streams = Streams(datasets)
    longest = max(dataset.batches_per_epoch for dataset in datasets.values())
    assert streams.epoch(streams.shown(3 * longest)) == 3
    assert streams.epoch(streams.shown(longest - 1)) < 1


def test_a_thread_makes_items_ahead_and_leaves_when_nobody_wants_them() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    stream = ahead(items(), 2)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()
    assert made == list(range(len(made)))
    assert len(made) <= 9  # 5 given, 2 ready, 1 waiting, 1 being made
    assert all(thread.name != "data" for thread in threading.enumerate())


def test_what_fails_in_the_thread_is_raised_where_it_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("data.main: no")

    stream = ahead(items(), 2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match=r"data\.main: no"):
        next(stream)
    assert list(ahead(iter(range(3)), 2)) == [0, 1, 2]


@pytest.mark.parametrize("mode", ["mix", "sequential"])
@pytest.mark.parametrize("start", [0, 1, 1023, 1024, 2500])
def test_draws_from_any_step_on_are_those_of_the_whole_run(make: Make, start: int, mode: Mode) -> None:
    weight = 3.0 if mode == "mix" else 1.0
    streams = Streams({"main": make(weight=weight), "other": make(name="other")}, mode=mode, seed=3)
    assert list(islice(streams.draws(start), 100)) == list(islice(streams.draws(), start, start + 100))


def test_resuming_continues_exactly_with_any_number_of_workers(make: Make) -> None:
    straight = take(Streams(two(make), mode="mix"), 0, 12)
    for workers in (0, 1, 2):
        assert_equal(take(Streams(two(make), mode="mix", workers=workers), 7, 5), straight[7:])


def test_workers_and_caches_can_be_mixed(make: Make, encode_image, encode_prompt) -> None:
    def streams(workers: int) -> Streams:
        main = make(cache_latents="memory")
        other = make(name="other", cache_text="memory")
        main.store_latents(encode_image, "vae")
        other.store_text(encode_prompt, "text encoders")
        return Streams({"main": main, "other": other}, workers=workers)

    one, other = take(streams(0), 2, 4), take(streams(2), 2, 4)
    assert_equal(one, other)
    assert all(step["main"].encoded and step["other"].positive is not None for step in other)


def test_workers_report_bad_images_and_user_mistakes_in_their_own_words(make: Make, images: Path) -> None:
    content = (images / "01.png").read_bytes()
    (images / "01.png").write_bytes(content[: len(content) // 2])
    dataset = make()
    take(Streams({"main": dataset}, workers=1), 0, 3)
    assert [file.key for file in dataset.bad] == ["01.png"]
    assert sum("01.png is left out" in line for line in dataset.lines) == 1
    strict = make(max_bad=0)
    with pytest.raises(ValueError, match=r"^data.main.source: 1 of 11 images cannot be used"):
        take(Streams({"main": strict}, workers=1), 0, 3)
    for path in images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"^data.main.source: no image of size 32 x 32 can be read"):
        take(Streams({"main": make()}, workers=1), 0, 3)


def test_ranks_together_see_each_image_once_an_epoch(make: Make, images: Path) -> None:
    dataset = make(FolderSource(images), OPTIONS["bucket"])
    steps = dataset.batches_per_epoch
    shares = [take(Streams({"main": dataset}, rank=rank, world_size=2), 0, steps) for rank in (0, 1)]
    seen: Counter[str] = Counter()
    for share in shares:
        for batch in (step["main"] for step in share):
            weights = [1.0] * len(batch) if batch.loss_mask is None else batch.loss_mask[:, 0, 0, 0].tolist()
            seen.update(key for key, weight in zip(batch.keys, weights, strict=True) if weight)
    assert seen == dict.fromkeys(FolderSource(images).files, 1)


def test_the_latents_of_ranks_together_are_those_of_one(make: Make, encode_image) -> None:
    dataset = make(cache_latents="memory")
    dataset.store_latents(encode_image, "vae")
    whole = dataset.batch(0).images
    parts = [dataset.batch(0, rank=rank, world_size=2).images for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1)[: len(whole)], whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sum"}, "mode: 'sum' is unknown"),
        ({"workers": -1}, "workers: -1 is no number of processes"),
        ({"world_size": 3}, r"data\.main\.batch_size: 4 images, .* do not divide among 3; use 6"),
        ({}, r"data\.main\.weight: it is for mode 'mix'"),
    ],
)
def test_wrong_settings_are_named(make: Make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Streams(two(make), **options)


def test_no_dataset_is_an_error() -> None:
    with pytest.raises(ValueError, match="data: there is no dataset"):
        Streams({})
