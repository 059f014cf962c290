from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hcpdiff.data import Dataset, FixedBucket, FolderSource, RatioBucket, Record
from hcpdiff.data.manifest import count, file_name, write

Make = Callable[..., Dataset]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown(dataset: Dataset, batches: int) -> Counter[str]:
    """The keys of the first batches, as the model gets them; rows without loss do not count."""
    keys: Counter[str] = Counter()
    for number in range(batches):
        batch = dataset.batch(number)
        counts = [True] * len(batch) if batch.loss_mask is None else batch.loss_mask.flatten(1).any(dim=1).tolist()
        keys.update(key for key, real in zip(batch.keys, counts, strict=True) if real)
    return keys


@pytest.mark.parametrize("underfilled", ["keep", "pad", "repeat", "drop", "merge"])
@pytest.mark.parametrize("batches", [0, 1, 5, 23])
def test_the_manifest_counts_what_the_batches_show(make: Make, underfilled: str, batches: int, images: Path) -> None:
    dataset = make(FolderSource(images, repeat=2), RatioBucket(32 * 32, num_buckets=3), underfilled=underfilled)
    counted = count(dataset, batches)
    keys = [dataset.samples.items.key(i) for i in range(11)]
    assert dict(zip(keys, counted.seen.tolist(), strict=True)) == {key: shown(dataset, batches)[key] for key in keys}


def test_every_image_is_seen_exactly_repeat_times_an_epoch(make: Make, images: Path, tmp_path: Path) -> None:
    dataset = make(FolderSource(images, repeat=3), RatioBucket(32 * 32, num_buckets=3), batch_size=5)
    line = write(tmp_path / "data", dataset, 2 * dataset.batches_per_epoch)
    assert line == "data.main: in 2 epochs 11 of 11 images were seen exactly repeat times an epoch"
    table = rows(tmp_path / "data" / "main.csv")
    assert [row["seen"] for row in table] == ["6"] * 11
    assert table[0] | {"target": "", "crop_loss": ""} == {
        "key": "01.png",
        "height": "48",
        "width": "40",
        "target": "",
        "crop_loss": "",
        "captioned": "1",
        "repeat": "3",
        "seen": "6",
    }
    sizes = {f"{height}x{width}" for height, width in dataset.samples.targets}
    assert {row["target"] for row in table} == sizes
    assert (tmp_path / "data" / "main.bad.csv").read_text(encoding="utf-8") == "key,reason\n"


def test_an_epoch_that_is_not_over_is_told_apart(make: Make, tmp_path: Path) -> None:
    dataset = make()
    assert write(tmp_path, dataset, 4).endswith("an epoch; and 1 batches of the next epoch were shown")
    assert write(tmp_path, dataset, 1) == "data.main: 1 batches, not a whole epoch, have shown 4 of 11 images"


def test_fractional_repeats_are_seen_the_whole_number_below_or_above(make: Make, images: Path, tmp_path: Path) -> None:
    dataset = make(FolderSource(images, repeat=1.5))
    batches = sum(dataset.epoch_length(epoch) for epoch in range(3))
    assert "in 3 epochs 11 of 11 images" in write(tmp_path, dataset, batches)
    assert {row["seen"] for row in rows(tmp_path / "main.csv")} <= {"4", "5"}
    even = batches + dataset.epoch_length(3)
    assert "in 4 epochs 11 of 11 images" in write(tmp_path, dataset, even)
    assert {row["seen"] for row in rows(tmp_path / "main.csv")} == {"6"}


def test_an_image_of_several_sizes_is_counted_at_each(make: Make, tmp_path: Path) -> None:
    dataset = make(bucket=[FixedBucket(16), FixedBucket(32)])
    line = write(tmp_path, dataset, dataset.batches_per_epoch)
    assert "11 of 11 images were seen exactly repeat times an epoch at each of their sizes" in line
    assert {(row["target"], row["seen"]) for row in rows(tmp_path / "main.csv")} == {("16x16 32x32", "2")}


def test_what_drop_leaves_out_is_not_counted_as_seen(make: Make, tmp_path: Path) -> None:
    dataset = make(underfilled="drop")
    assert "in 1 epoch 8 of 11 images" in write(tmp_path, dataset, dataset.batches_per_epoch)
    assert Counter(row["seen"] for row in rows(tmp_path / "main.csv")) == {"1": 8, "0": 3}


def test_unreadable_images_are_listed_with_reasons_and_not_seen(make: Make, images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"no image")
    content = (images / "01.png").read_bytes()
    (images / "01.png").write_bytes(content[: len(content) // 2])  # its size can be read, its pixels cannot
    dataset = make()
    keys = shown(dataset, dataset.batches_per_epoch)
    line = write(tmp_path, dataset, dataset.batches_per_epoch)
    assert "9 of 11 images were seen exactly" in line  # one not at all, one that stood in for it twice
    assert "1 could not be read and others stood in for them" in line
    bad = rows(tmp_path / "main.bad.csv")
    assert {row["key"] for row in bad} == {"broken.png", "01.png"}
    assert all(row["reason"] for row in bad)
    seen = {row["key"]: int(row["seen"]) for row in rows(tmp_path / "main.csv")}
    assert seen["01.png"] == 0
    assert sum(seen.values()) == 11
    assert Counter(seen) == keys  # the image that stood in is counted


def test_names_of_datasets_and_files_cannot_lead_elsewhere(make: Make, images: Path, tmp_path: Path) -> None:
    (images / "01.png").rename(images / 'a "quote", a\nline.png')
    (images / "02.png").rename(images / "no unicode \udcff.png")
    dataset = make(name="../up")
    write(tmp_path / "data", dataset, 0)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["_._up.bad.csv", "_._up.csv"]
    written = rows(tmp_path / "data" / "_._up.csv") + rows(tmp_path / "data" / "_._up.bad.csv")
    assert {'a "quote", a\nline.png', "no unicode \\xff.png"} <= {row["key"] for row in written}
    assert file_name(".hidden") == "_hidden"


class Many:
    """A source of very many images, none of which is ever read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{index:07}.jpg"

    def size(self, index: int) -> tuple[int, int]:
        return 512, 512 + index % 3 * 128

    def sizes(self) -> np.ndarray:
        index = np.arange(self.count)
        return np.stack([np.full_like(index, 512), 512 + index % 3 * 128], axis=1).astype(np.int32)

    def captions(self, index: int) -> Sequence[str]:
        return ("a picture",)

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        raise OSError("there is no such file")


def test_a_manifest_of_many_images_takes_seconds_per_million(make: Make, tmp_path: Path) -> None:
    dataset = make(Many(50_000), RatioBucket(65536, num_buckets=3))
    started = time.process_time()
    line = write(tmp_path, dataset, 2 * dataset.batches_per_epoch)
    assert time.process_time() - started < 5  # 0.3 s of CPU time measured, at a million 5 s
    assert "50,000 of 50,000 images" in line
