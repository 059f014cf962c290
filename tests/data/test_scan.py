from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcpdiff.data import FolderSource, Record
from hcpdiff.data import scan as module
from hcpdiff.data.index import FileIndex
from hcpdiff.data.scan import check_bad, scan
from hcpdiff.data.sources import folder as folder_module
from hcpdiff.data.sources.base import Stamps


class Numbers:
    """A source of numbered images, all 20 x (30 + number), that counts whose size it was asked for."""

    def __init__(self, count: int, *, repeat: object = 1, broken: Sequence[int] = ()) -> None:
        self.count = count
        self.repeat = repeat
        self.broken = broken
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"number {index}"

    def size(self, index: int) -> tuple[int, int]:
        self.asked.append(index)
        if index in self.broken:
            raise SyntaxError("broken")
        return 20, 30 + index

    def captions(self, index: int) -> list[str]:
        return []

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(Image.new("RGB", (30 + index, 20)))


class Known(Numbers):
    """One whose sizes are known but for number 2."""

    def sizes(self) -> np.ndarray:
        sizes = np.array([(20, 30 + index) for index in range(self.count)])
        sizes[2] = 0
        return sizes


@pytest.fixture
def old_images(images: Path) -> Path:
    for path in images.rglob("*.png"):
        os.utime(path, (1000, 1000))
    return images


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose header was read."""
    read: list[str] = []
    image_size = folder_module.image_size
    monkeypatch.setattr(
        folder_module, "image_size", lambda path: read.append(os.path.basename(path)) or image_size(path)
    )
    return read


def test_items_are_numbered_over_all_sources_and_bad_files_are_listed_with_their_reason() -> None:
    items, bad = scan([Numbers(3, broken=[1]), Numbers(2, repeat=[2, 0.5])], "data.main.source")
    assert [items.key(i) for i in range(len(items))] == ["0/number 0", "0/number 2", "1/number 0", "1/number 1"]
    assert items.source.tolist() == [0, 0, 1, 1]
    assert items.local.tolist() == [0, 2, 0, 1]
    assert items.sizes.tolist() == [[20, 30], [20, 32], [20, 30], [20, 31]]
    assert items.repeats.tolist() == [1, 1, 2, 0.5]
    assert [(file.key, file.reason) for file in bad] == [("0/number 1", "SyntaxError: broken")]


def test_keys_of_an_only_source_are_its_own() -> None:
    items, _ = scan([Numbers(2)], "")
    assert items.key(1) == "number 1"


def test_items_are_small() -> None:
    items, _ = scan([Numbers(100)], "")
    arrays = (items.source, items.local, items.sizes, items.repeats)
    assert sum(array.nbytes for array in arrays) <= 22 * len(items)


def test_known_sizes_are_taken_at_once_and_only_the_others_are_asked_for() -> None:
    source = Known(5)
    items, bad = scan([source], "")
    assert items.sizes[:, 1].tolist() == [30, 31, 32, 33, 34]
    assert (source.asked, bad) == ([2], [])


@pytest.mark.parametrize(
    ("repeat", "message"),
    [([1, 2], r"data.main.source.repeat: its shape is \(2,\)"), ([1, -1, 1], "repeat: use numbers of 0 or more")],
)
def test_wrong_repeats_of_a_source_are_named(repeat: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scan([Numbers(3, repeat=repeat)], "data.main.source")


def test_a_wrong_table_of_sizes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Known, "sizes", lambda self: np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"source\[1\]\.sizes: their shape is \(2, 2\); it should be \(5, 2\)"):
        scan([Numbers(1), Known(5)], "data.main.source")


def test_a_size_of_zero_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "size", lambda self, index: (0, 5))
    items, bad = scan([Numbers(2)], "")
    assert len(items) == 0
    assert bad[0].reason == "ValueError: 0 x 5 is no size"


def test_progress_counts_to_the_total_over_all_sources() -> None:
    told: list[tuple[int, int]] = []
    scan([Numbers(600), Known(5), Numbers(3)], "", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (608, 608)
    assert told == sorted(told)
    assert (256, 608) in told


def test_slow_disks_are_read_by_many_threads_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Numbers):
        def stamps(self) -> Stamps:
            return Stamps([f"/{index}" for index in range(self.count)], np.zeros(self.count), np.zeros(self.count))

        def size(self, index: int) -> tuple[int, int]:
            time.sleep(0.01)
            return super().size(index)

    monkeypatch.setattr(module, "_PART", 20)
    start = time.perf_counter()
    items, bad = scan([Slow(400, broken=[7, 350])], "")
    assert time.perf_counter() - start < 3  # one after the other they take 4 s, with 16 threads 0.5 s
    assert items.sizes[:, 1].tolist() == [30 + index for index in range(400) if index not in (7, 350)]
    assert [file.key for file in bad] == ["number 7", "number 350"]


def test_a_restart_reads_no_header_of_unchanged_files(
    old_images: Path, tmp_path: Path, headers_read: list[str]
) -> None:
    first, _ = scan([FolderSource(old_images)], "", index=tmp_path / "index")
    assert len(headers_read) == len(first) == 11
    headers_read.clear()
    again, bad = scan([FolderSource(old_images)], "", index=tmp_path / "index")
    assert headers_read == []
    assert np.array_equal(first.sizes, again.sizes)
    assert bad == []


def test_an_edited_file_of_equal_length_is_read_again(
    old_images: Path, tmp_path: Path, headers_read: list[str]
) -> None:
    Image.new("RGB", (8, 9)).save(old_images / "01.png", format="bmp")
    os.utime(old_images / "01.png", (1000, 1000))
    scan([FolderSource(old_images)], "", index=tmp_path / "index")
    headers_read.clear()
    content = bytearray((old_images / "01.png").read_bytes())
    content[18:26] = content[22:26] + content[18:22]  # width and height
    (old_images / "01.png").write_bytes(bytes(content))
    os.utime(old_images / "01.png", (2000, 2000))
    source = FolderSource(old_images)
    items, _ = scan([source], "", index=tmp_path / "index")
    assert headers_read == ["01.png"]
    assert items.sizes[source.files.index("01.png")].tolist() == [8, 9]  # it was 9 high, 8 wide


def test_a_bad_file_is_looked_at_again_in_the_next_run(
    old_images: Path, tmp_path: Path, headers_read: list[str]
) -> None:
    (old_images / "01.png").write_bytes(b"broken")
    os.utime(old_images / "01.png", (1000, 1000))
    for _ in range(2):
        headers_read.clear()
        _, bad = scan([FolderSource(old_images)], "", index=tmp_path / "index")
        assert [file.key for file in bad] == ["01.png"]
    assert headers_read == ["01.png"]


def test_sources_take_the_hashes_of_unchanged_files_from_the_index(
    old_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FolderSource(old_images)
    expected = [plain.fingerprint(i) for i in range(len(plain))]
    index = FileIndex(tmp_path / "index")
    source = FolderSource(old_images)
    scan([source], "", index=index)
    assert [source.fingerprint(i) for i in range(len(source))] == expected
    index.save()
    monkeypatch.setattr("hcpdiff.data.index.hash_file", lambda path: pytest.fail(f"{path} was read"))
    again = FolderSource(old_images)
    scan([again], "", index=tmp_path / "index")
    assert [again.fingerprint(i) for i in range(len(again))] == expected


def test_too_many_bad_files_stop_with_their_reasons() -> None:
    _, bad = scan([Numbers(50, broken=range(30))], "")
    with pytest.raises(ValueError, match=r"main.source: 30 of 50 images cannot be used; .*\n  number 0: SyntaxError"):
        check_bad(bad, 50, 0.5, "data.main")
    with pytest.raises(ValueError, match="and 10 more"):
        check_bad(bad, 50, 29, "data.main")
    check_bad(bad, 50, 30, "data.main")
