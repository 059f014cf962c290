from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff.data.cache import ALONE, Table, Team, content_key, durable, fill, filling, index, table
from hcpdiff.data.cache import shards as shards_module
from hcpdiff.data.cache.durable import FolderLock
from hcpdiff.data.cache.index import INDEX
from hcpdiff.data.cache.keys import KeyIndex
from hcpdiff.data.cache.shared import shared_table

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Forks writers of rows n, n + 1 ..., and kills them: `rounds` times, after up to `seconds`, all of `first` at once.
KILLER = """
import os, random, signal, sys, time, torch
from hcpdiff.data.cache import Table, content_key, table
folder, rounds, seconds, *firsts = sys.argv[1:]
table._ROWS = 2

def write(n):
    cache = Table(folder)
    while True:
        if content_key(n) not in cache:
            cache.add(content_key(n), {"a": torch.full((2000 + n % 3,), float(n))})
        n += 1
        if n % 16 == 0:
            cache.flush()

rng = random.Random(0)
for _ in range(int(rounds)):
    children = []
    for first in firsts:
        child = os.fork()
        if not child:
            write(int(first))
        children.append(child)
    time.sleep(rng.uniform(float(seconds) / 10, float(seconds)))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def key(number: object) -> bytes:
    return content_key(number)


def row(value: float, size: int = 3) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), value), "b": torch.full((2, 2), value, dtype=torch.bfloat16)}


def filled(folder: Path | None, numbers: Sequence[int]) -> Table:
    made = Table(folder)
    for number in numbers:
        made.add(key(number), row(number))
    made.flush()
    return made


def write_and_kill(folder: Path, *firsts: int, rounds: int, seconds: float) -> Table:
    """The table that writers leave which are killed again and again; all rows of it are tested."""
    words = [str(word) for word in (folder, rounds, seconds, *firsts)]
    subprocess.run([sys.executable, "-c", KILLER, *words], env=ENVIRONMENT, check=True, timeout=60)
    made, right = Table(folder), 0
    for first in set(firsts):
        for number in range(first, first + 5000):
            if key(number) in made:
                assert torch.equal(made.row(key(number))["a"], torch.full((2000 + number % 3,), float(number)))
                right += 1
    assert right == len(np.unique(made._index.keys, axis=0))
    return made


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9a-f]*.safetensors"))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_rows_come_back_bit_equal_whatever_their_shapes(kind: str, tmp_path: Path) -> None:
    made = Table(tmp_path / "table" if kind == "disk" else None)
    for number in range(10):
        made.add(key(number), row(number, size=3 + number % 2))
    assert key(3) not in made  # not before it can be read
    made.flush()
    assert len(made) == 10
    for number in range(10):
        expected, got = row(number, size=3 + number % 2), made.row(key(number))
        assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in expected.items()}
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert made.column("a", [key(4), key(0), key(4)]).tolist() == [[4] * 3, [0] * 3, [4] * 3]
    assert set(made.fields(key(0))) == {"a", "b"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool])
def test_every_kind_of_number_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    made, values = Table(tmp_path), torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    made.add(key("x"), {"a": values, "scalar": values[0, 0], "odd": torch.ones(3, dtype=torch.uint8)})
    made.flush()
    got = Table(tmp_path).row(key("x"))
    assert got["a"].dtype == dtype
    assert torch.equal(got["a"], values)
    assert torch.equal(got["scalar"], values[0, 0])


def test_keys_are_found_whatever_bytes_they_have() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3, (9000, 16), dtype=np.uint8)  # many zeros, also at the end
    keys = np.unique(keys, axis=0)
    rng.shuffle(keys)
    known = KeyIndex()
    for start in range(0, len(keys), 700):
        known.append(keys[start : start + 700])
        assert np.array_equal(known.find(keys[: start + 700]), np.arange(min(start + 700, len(keys))))
    assert (known.find(np.full((2, 5, 16), 9, dtype=np.uint8)) == -1).all()
    known.append(keys[:50])
    assert np.array_equal(known.find(keys[:50]), np.arange(50))  # the first of equal ones


def test_another_process_reads_what_was_written_and_what_is_added_later(tmp_path: Path) -> None:
    writer, reader = Table(tmp_path), Table(tmp_path)
    writer.add(key("x"), row(1))
    writer.flush()
    assert key("x") not in reader
    reader.refresh()
    assert torch.equal(reader.row(key("x"))["a"], row(1)["a"])
    assert key("x") in Table(tmp_path)


def test_shards_stay_small_and_few_rows_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_ROWS", 4)
    made = Table(tmp_path)
    for number in range(10):
        made.add(key(number), row(number))
    assert (len(shards(tmp_path)), key(7) in made, key(8) in made) == (2, True, False)
    monkeypatch.setattr(table, "_BYTES", 1000)
    for number in range(60):  # of so many shapes that no shard gets full
        made.add(key(-1 - number), {"a": torch.zeros(10 + number)})
        assert made._waiting_bytes < 1000


def test_shards_are_safetensors_that_other_tools_read(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    content = load_file(shards(tmp_path)[0])
    assert content["a"].tolist() == [[1] * 3, [2] * 3]
    assert content["__keys__"].numpy().tobytes() == key(1) + key(2)


def test_files_that_are_no_whole_shards_are_not_read(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    (shard,) = shards(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(shard.read_bytes()[:-5])
    (tmp_path / "beheaded.safetensors").write_bytes(shard.read_bytes()[:20])
    (tmp_path / "longer.safetensors").write_bytes(shard.read_bytes() + b"12345")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "json.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "rows.safetensors", metadata={"keys": '["y"]'})
    assert len(Table(tmp_path)) == 1


def test_a_shard_that_was_cut_off_later_is_noticed_when_the_table_is_opened(tmp_path: Path) -> None:
    made = filled(tmp_path, range(4))
    made.add(key(9), row(9, size=5))
    made.flush()  # two shards, and an index that knows both
    made.close()
    cut = max(shards(tmp_path), key=lambda path: path.stat().st_size)
    os.truncate(cut, cut.stat().st_size - 1)
    again = Table(tmp_path)
    assert [key(number) in again for number in (0, 3, 9)] == [False, False, True]


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of another table"])
def test_a_bad_index_costs_only_time(damage: str, tmp_path: Path) -> None:
    for number in range(3):
        filled(tmp_path / "a", [number])
    filled(tmp_path / "b", [7])
    path = tmp_path / "a" / INDEX
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-40])
    elif damage == "flipped":
        place = content.index(key(1))
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes((tmp_path / "b" / INDEX).read_bytes())
    again = Table(tmp_path / "a")
    assert [again.row(key(number))["a"][0].item() for number in range(3)] == [0, 1, 2]
    again.flush()
    assert path.stat().st_size > 500  # written anew


def test_the_index_alone_tells_what_a_large_table_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        filled(tmp_path, [number])

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(table, "read_info", fail)
    again = Table(tmp_path)
    assert again.row(key(4))["a"][0].item() == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")
def test_a_writer_killed_at_any_moment_leaves_only_right_rows(tmp_path: Path) -> None:
    made = write_and_kill(tmp_path, 0, rounds=25, seconds=0.1)
    assert len(made) > 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")
def test_processes_fill_one_table_at_once_and_another_reads_all_of_it(tmp_path: Path) -> None:
    made = write_and_kill(tmp_path, 0, 0, 1_000_000, rounds=1, seconds=1.5)
    assert key(40) in made
    assert key(1_000_040) in made


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    made = Table(tmp_path)
    made.add(key("x"), row(1))
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}"):
        made.flush()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_content_keys_tell_any_difference() -> None:
    assert content_key("a", (1, 2)) == content_key("a", (1, 2))
    assert len({content_key("a", "b"), content_key("ab"), content_key("b", "a"), content_key("a", "b", None)}) == 4
    assert len(content_key()) == 16


def test_a_table_in_use_cannot_be_deleted_from(tmp_path: Path) -> None:
    made, lock = filled(tmp_path, [1]), FolderLock(tmp_path)
    assert not lock.alone()
    made.close()
    assert lock.alone()
    lock.release()


class Processes:
    """Threads that stand for the processes of a run; `most` waits for all of them."""

    def __init__(self, count: int, machines: int = 1) -> None:
        self.count, self.machines = count, machines
        self.barrier, self.numbers = threading.Barrier(count), [0] * count

    def team(self, rank: int) -> Team:
        local = self.count // self.machines
        return Team(rank, self.count, rank % local, local, lambda number: self._most(rank, number))

    def _most(self, rank: int, number: int) -> int:
        self.barrier.wait(20)
        self.numbers[rank] = number
        self.barrier.wait(20)
        return max(self.numbers)

    def run(self, folders: Sequence[Path | None], rows: int, *, slow: float = 0) -> tuple[list[Table], list[list[int]]]:
        """Each fills a table of so many rows: the tables, and what each process computed."""
        tables: dict[int, Table] = {}
        computed: list[list[int]] = [[] for _ in folders]

        def process(rank: int) -> None:
            mine, settle = shared_table(folders[rank], "", self.team(rank))

            def missing() -> list[list[int]]:
                return [[number] for number in range(rows) if key(number) not in mine]

            def work(parts: Sequence[list[int]]) -> Iterator[int]:
                for done, (number,) in enumerate(parts, 1):
                    time.sleep(slow * rank)
                    mine.add(key(number), row(number))
                    computed[rank].append(number)
                    yield done

            fill(mine, missing, work, team=self.team(rank))
            settle()
            tables[rank] = mine

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [tables[rank] for rank in range(self.count)], computed


def all_there(made: Table, rows: int) -> bool:
    return all(made.row(key(number))["a"][0].item() == number for number in range(rows))


def test_the_processes_of_a_run_share_the_work_and_all_read_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_SHIFT", 0.02)  # they meet often, and one is slower than the others
    tables, computed = Processes(3).run([tmp_path] * 3, 10, slow=0.01)
    assert [len(part) for part in computed] == [4, 3, 3]
    assert all(all_there(made, 10) for made in tables)
    again = Processes(3).run([tmp_path] * 3, 10)[1]
    assert again == [[], [], []]


def test_a_table_in_memory_is_shared_by_the_processes_of_a_machine_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tables, computed = Processes(2).run([None] * 2, 9)
    assert sorted(computed[0] + computed[1]) == list(range(9))
    assert list(tmp_path.iterdir()) == []
    assert all(all_there(made, 9) for made in tables)


def test_machines_that_do_not_share_a_disk_each_fill_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / "first"] * 2 + [tmp_path / "second"] * 2
    tables, computed = Processes(4, machines=2).run(folders, 8)
    assert [len(part) for part in computed] == [4, 4, 4, 4]
    assert all(all_there(made, 8) for made in tables)


def test_a_shard_that_was_cut_off_is_read_again_once_its_rows_are_computed_again(tmp_path: Path) -> None:
    filled(tmp_path, range(4)).close()
    (shard,) = shards(tmp_path)
    os.truncate(shard, shard.stat().st_size - 1)
    assert all_there(filled(tmp_path, range(4)), 4)  # the same rows make a file of the same name
    assert all_there(Table(tmp_path), 4)


def only_read(*args: object, **options: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_full_cache_in_a_folder_that_may_only_be_read_needs_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, range(4)).close()
    (tmp_path / INDEX).unlink()
    monkeypatch.setattr(index, "write_durably", only_read)
    again = Table(tmp_path)
    again.flush()
    assert all_there(again, 4)
    monkeypatch.setattr(shards_module, "write_durably", only_read)
    again.add(key(4), row(4))
    with pytest.raises(PermissionError):
        again.flush()


def test_a_file_system_without_locks_holds_caches_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable.fcntl, "flock", unknown)
    assert all_there(filled(tmp_path, range(4)), 4)


def test_what_was_computed_before_an_interrupt_is_kept(tmp_path: Path) -> None:
    made = Table(tmp_path)

    def work(parts: Sequence[list[int]]) -> Iterator[int]:
        for done, (number,) in enumerate(parts):
            if done == 3:
                raise KeyboardInterrupt
            made.add(key(number), row(number))
            yield done + 1

    with pytest.raises(KeyboardInterrupt):
        fill(made, lambda: [[number] for number in range(5)], work, team=ALONE)
    assert all_there(Table(tmp_path), 3)
