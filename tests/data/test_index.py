from __future__ import annotations

import errno
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from hcpdiff.data import index as module
from hcpdiff.data.index import FileIndex, hash_file
from hcpdiff.data.sources.base import Stamps

NOW = 10**18  # ns


def stamps(names: list[str], *, mtime: int = 5, size: int = 100) -> Stamps:
    return Stamps(names, np.full(len(names), mtime), np.full(len(names), size))


def sizes_of(names: list[str]) -> np.ndarray:
    return np.array([(1000 + len(name), i + 1) for i, name in enumerate(names)], dtype=np.int32)


def remember(index: FileIndex, files: Stamps, sizes: np.ndarray, *, read_at: int = NOW) -> None:
    index.add_sizes(files, np.arange(len(files.names)), sizes, read_at)
    index.save()


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    os.utime(path, (1000, 1000))
    return path


def test_the_sizes_of_unchanged_files_outlive_the_run(tmp_path: Path) -> None:
    names = [f"/x/ü{i}.png" for i in range(50)]
    assert not FileIndex(tmp_path).sizes(stamps(names)).any()
    remember(FileIndex(tmp_path), stamps(names), sizes_of(names))
    again = FileIndex(tmp_path)
    assert np.array_equal(again.sizes(stamps(names)), sizes_of(names))
    some = [names[7], "/x/new.png", names[3]]
    assert again.sizes(stamps(some)).tolist() == [[1000 + len(names[7]), 8], [0, 0], [1000 + len(names[3]), 4]]


@pytest.mark.parametrize("changed", [{"mtime": 6}, {"size": 101}])
def test_a_changed_file_is_not_known(changed: dict, tmp_path: Path) -> None:
    remember(FileIndex(tmp_path), stamps(["/a", "/b"]), sizes_of(["/a", "/b"]))
    assert not FileIndex(tmp_path).sizes(stamps(["/a", "/b"], **changed)).any()


def test_a_file_that_is_learned_anew_replaces_what_was_known(tmp_path: Path) -> None:
    for mtime in (5, 6):
        remember(FileIndex(tmp_path), stamps(["/b", "/a"], mtime=mtime), np.full((2, 2), mtime))
    assert FileIndex(tmp_path).sizes(stamps(["/a", "/b"], mtime=6)).tolist() == [[6, 6], [6, 6]]
    assert not FileIndex(tmp_path).sizes(stamps(["/a", "/b"], mtime=5)).any()


def test_files_that_have_just_changed_are_not_remembered(tmp_path: Path) -> None:
    new = stamps(["/a"], mtime=NOW - 10**9)
    remember(FileIndex(tmp_path), new, sizes_of(["/a"]))
    assert not FileIndex(tmp_path).sizes(new).any()
    remember(FileIndex(tmp_path), new, sizes_of(["/a"]), read_at=NOW + 2 * 10**9)
    assert FileIndex(tmp_path).sizes(new).all()


def test_files_without_a_stamp_are_not_remembered(tmp_path: Path) -> None:
    remember(FileIndex(tmp_path), stamps(["/a"], size=-1), sizes_of(["/a"]))
    assert not FileIndex(tmp_path).sizes(stamps(["/a"], size=-1)).any()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_broken_index_is_as_good_as_none_and_is_replaced(damage: str, tmp_path: Path) -> None:
    names = ["/a", "/b", "/c"]
    remember(FileIndex(tmp_path), stamps(names), sizes_of(names))
    path = FileIndex(tmp_path).path
    content = path.read_bytes()
    flipped = content[:60] + bytes([content[60] ^ 1]) + content[61:]
    path.write_bytes({"cut": content[:-48], "flip": flipped, "empty": b"", "other": b"PK\x03\x04" * 30}[damage])
    assert not FileIndex(tmp_path).sizes(stamps(names)).any()
    remember(FileIndex(tmp_path), stamps(names), sizes_of(names))
    assert FileIndex(tmp_path).sizes(stamps(names)).all()


def test_what_another_process_saved_meanwhile_is_kept(tmp_path: Path) -> None:
    first, second = FileIndex(tmp_path), FileIndex(tmp_path)
    assert not first.sizes(stamps(["/a"])).any()
    assert not second.sizes(stamps(["/b"])).any()
    remember(first, stamps(["/a"]), np.full((1, 2), 1))
    remember(second, stamps(["/b"]), np.full((1, 2), 2))
    assert FileIndex(tmp_path).sizes(stamps(["/a", "/b"])).tolist() == [[1, 1], [2, 2]]


def test_contents_are_hashed_once_while_the_file_is_unchanged(
    old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "hash_file", lambda path: read.append(path) or hash_file(path))
    index = FileIndex(tmp_path / "index")
    first = index.fingerprint(str(old_file))
    assert first == hash_file(old_file).hex()
    assert index.fingerprint(str(old_file)) == first
    index.save()
    again = FileIndex(tmp_path / "index")
    assert again.fingerprint(str(old_file)) == first
    assert len(read) == 1
    old_file.write_bytes(b"other")  # as long as before
    os.utime(old_file, (2000, 2000))
    assert again.fingerprint(str(old_file)) == hash_file(old_file).hex() != first
    again.save()
    assert FileIndex(tmp_path / "index").fingerprint(str(old_file)) != first
    assert len(read) == 2


def test_a_file_in_the_making_is_hashed_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    index = FileIndex(tmp_path)
    path.write_bytes(b"first")
    stat = path.stat()
    assert index.fingerprint(str(path)) == hash_file(path).hex()
    path.write_bytes(b"other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a second change within one tick of the clock
    assert index.fingerprint(str(path)) == hash_file(path).hex()


def test_sizes_and_hashes_of_one_file_come_together(old_file: Path, tmp_path: Path) -> None:
    stat = old_file.stat()
    files = Stamps([str(old_file)], np.array([stat.st_mtime_ns]), np.array([stat.st_size]))
    with_size, with_hash = FileIndex(tmp_path / "index"), FileIndex(tmp_path / "index")
    known = with_hash.fingerprint(str(old_file))
    remember(with_size, files, np.array([[3, 4]]), read_at=time.time_ns())
    with_hash.save()
    old_file.unlink()
    both = FileIndex(tmp_path / "index")
    assert both.sizes(files).tolist() == [[3, 4]]
    with pytest.raises(FileNotFoundError):
        both.fingerprint(str(old_file))
    old_file.write_bytes(b"wrong")
    os.utime(old_file, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert both.fingerprint(str(old_file)) == known  # the stamp is all that is looked at


def test_long_work_is_saved_now_and_then(old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY", -1.0)
    index = FileIndex(tmp_path / "index")
    index.fingerprint(str(old_file))
    assert index.path.stat().st_size > 48


def test_an_index_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    FileIndex(tmp_path / "index").save()
    assert not (tmp_path / "index").exists()


def test_in_another_process_it_reads_what_was_saved(tmp_path: Path) -> None:
    index = FileIndex(tmp_path)
    remember(index, stamps(["/a"]), sizes_of(["/a"]))
    content = pickle.dumps(index)
    assert len(content) < 1000
    assert pickle.loads(content).sizes(stamps(["/a"])).all()


def test_what_is_known_of_few_files_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    os.utime(path, (1, 1))
    for least, written in ((2, False), (1, True)):
        index = FileIndex(tmp_path / "cache", least=least)
        index.fingerprint(str(path))
        index.save()
        assert (tmp_path / "cache").exists() == written


def test_in_a_folder_that_may_only_be_read_it_is_not_saved(
    old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("hcpdiff.data.index.write_durably", read_only)
    index = FileIndex(tmp_path / "cache")
    assert index.fingerprint(str(old_file)) == hash_file(old_file).hex()
    index.save()
    assert not index.path.exists()
