from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hcpdiff.data import cache
from hcpdiff.data.cache import Table, content_key


def row(value: float, size: int = 3) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), value), "b": torch.full((2, 2), value, dtype=torch.bfloat16)}


@pytest.fixture(params=["memory", "disk"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    return Table(tmp_path / "table" if request.param == "disk" else None)


def test_rows_come_back_bit_equal_whatever_their_shapes(table: Table) -> None:
    for number in range(10):
        table.add(str(number), row(number, size=3 + number % 2))
    assert "3" not in table  # not before it can be read
    table.flush()
    assert len(table) == 10
    for number in range(10):
        expected, got = row(number, size=3 + number % 2), table.row(str(number))
        assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in expected.items()}
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert table.column("a", ["4", "0", "4"]).tolist() == [[4] * 3, [0] * 3, [4] * 3]
    assert set(table.fields("0")) == {"a", "b"}


def test_another_process_reads_what_was_written_and_what_is_added_later(tmp_path: Path) -> None:
    writer, reader = Table(tmp_path), Table(tmp_path)
    writer.add("x", row(1))
    writer.flush()
    assert "x" not in reader
    reader.refresh()
    assert torch.equal(reader.row("x")["a"], row(1)["a"])
    assert "x" in Table(tmp_path)


def test_shards_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_ROWS", 4)
    table = Table(tmp_path)
    for number in range(10):
        table.add(str(number), row(number))
    assert (len(list(tmp_path.glob("*.safetensors"))), "7" in table, "8" in table) == (2, True, False)


def test_files_that_are_no_whole_shards_are_not_read(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.add("x", row(1))
    table.flush()
    shard = next(tmp_path.glob("*.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(shard.read_bytes()[:-5])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "rows.safetensors", metadata={"keys": '["y"]'})
    assert len(Table(tmp_path)) == 1


def test_a_killed_writer_leaves_only_whole_rows(tmp_path: Path) -> None:
    script = (
        "import sys, torch\nfrom hcpdiff.data import cache\ncache._ROWS = 2\ntable = cache.Table(sys.argv[1])\n"
        "n = 0\nwhile True:\n    table.add(str(n), {'a': torch.full((20000,), float(n))})\n    n += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*.safetensors"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    table = Table(tmp_path)
    assert len(table) >= 6
    for number in range(len(table)):
        assert torch.equal(table.row(str(number))["a"], torch.full((20000,), float(number)))


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    table = Table(tmp_path)
    table.add("x", row(1))
    with pytest.raises(OSError, match="No space left"):
        table.flush()
    assert list(tmp_path.iterdir()) == []


def test_content_keys_tell_any_difference() -> None:
    assert content_key("a", (1, 2)) == content_key("a", (1, 2))
    assert len({content_key("a", "b"), content_key("ab"), content_key("b", "a"), content_key("a", "b", None)}) == 4
