from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from hcpdiff.data.cache import Table, content_key, table
from hcpdiff.data.cache.index import shard_files
from hcpdiff.data.cache.maintenance import collect, damaged, size_text, tables


def key(number: object) -> bytes:
    return content_key(number)


def make(path: Path, numbers: Iterable[int], about: str = "a VAE") -> Path:
    made = Table(path, about=about)
    for number in numbers:
        made.add(key(number), {"mean": torch.full((50,), float(number))})
    made.flush()
    made.close()
    return path


def values(path: Path, numbers: Iterable[int]) -> list[float]:
    made = Table(path)
    found = [made.row(key(number))["mean"][0].item() for number in numbers if key(number) in made]
    made.close()
    return found


def set_age(path: Path, days: float) -> None:
    for file in path.iterdir():
        os.utime(file, (time.time() - days * 86400,) * 2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Latents of two VAEs, and one text table, with two rows a shard."""
    monkeypatch.setattr(table, "_ROWS", 2)
    make(tmp_path / "latents" / "aaaaaaaaaaaa", range(6))
    make(tmp_path / "latents" / "bbbbbbbbbbbb", range(3), about="another VAE")
    make(tmp_path / "text" / "cccccccccccc", range(2), about="a CLIP")
    return tmp_path


def test_what_lies_in_a_cache_is_told_in_words(cache: Path) -> None:
    lines = [str(table) for table in tables(cache)]
    assert lines[0].startswith("latents/aaaaaaaa: latents by a VAE; 6 entries, ")
    assert lines[2].startswith("text/cccccccc: conditioning of prompts by a CLIP; 2 entries, ")
    assert lines[2].endswith("used today")
    set_age(cache / "text" / "cccccccccccc", 12)
    assert str(tables(cache)[2]).endswith("used 12 days ago")
    assert tables(cache / "nowhere") == []


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damage_is_found_and_repaired(damage: str, cache: Path) -> None:
    assert damaged(cache) == []
    path = cache / "latents" / "aaaaaaaaaaaa"
    shard = path / next(iter(shard_files(path)))
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1  # of a value
    shard.write_bytes(content if damage == "flipped" else content[:-1])
    assert damaged(cache) == [shard]
    assert damaged(cache, repair=True) == [shard]
    assert damaged(cache) == []
    assert len(values(path, range(6))) == 4  # the others are computed again
    assert values(make(path, range(6)), range(6)) == list(range(6))


def test_tables_and_entries_that_no_config_uses_go_and_the_rest_stays_right(cache: Path) -> None:
    first = cache / "latents" / "aaaaaaaaaaaa"
    keep = {first: {key(0), key(1), key(2)}, cache / "text" / "cccccccccccc": {key(0), key(1)}}
    told, _ = collect(cache, keep, dry_run=True)
    assert len(tables(cache)) == 3
    assert values(first, range(6)) == [0, 1, 2, 3, 4, 5]
    freed, busy = collect(cache, keep)
    assert busy == []
    assert [(part.path.name, part.rows) for part in freed] == [("aaaaaaaaaaaa", 3), ("bbbbbbbbbbbb", 3)]
    assert [part.nbytes for part in freed] == [part.nbytes for part in told]
    assert [table.path.name for table in tables(cache)] == ["aaaaaaaaaaaa", "cccccccccccc"]
    assert values(first, range(6)) == [0, 1, 2]
    assert values(cache / "text" / "cccccccccccc", range(2)) == [0, 1]
    assert damaged(cache) == []
    assert sorted(path.name for path in (cache / "latents").iterdir()) == ["aaaaaaaaaaaa"]
    assert collect(cache, keep)[0] == []


def test_damaged_entries_are_not_written_anew_as_if_they_were_sound(cache: Path) -> None:
    path = cache / "latents" / "aaaaaaaaaaaa"
    for name in shard_files(path):
        content = bytearray((path / name).read_bytes())
        content[-100] ^= 1
        (path / name).write_bytes(content)
    collect(cache, {path: {key(0)}})
    assert values(path, range(6)) == []


def test_what_was_long_not_used_goes(cache: Path) -> None:
    set_age(cache / "latents" / "bbbbbbbbbbbb", 40)
    freed, _ = collect(cache, days=30)
    assert [str(part).split(", ")[0] for part in freed] == ["latents/bbbbbbbb: not used for 40 days"]
    assert len(tables(cache)) == 2


def test_what_a_process_uses_is_left_alone(cache: Path) -> None:
    reader = Table(cache / "latents" / "bbbbbbbbbbbb")
    freed, busy = collect(cache, {})
    assert [path.name for path in busy] == ["bbbbbbbbbbbb"]
    assert len(freed) == 2
    assert reader.row(key(2))["mean"][0] == 2
    reader.close()
    assert collect(cache, {})[1] == []
    assert tables(cache) == []


def test_leftovers_of_killed_processes_go_too(cache: Path) -> None:
    leftover = cache / "latents" / "aaaaaaaaaaaa" / ".0123.safetensors.45.tmp"
    leftover.write_bytes(bytes(1000))
    removed = cache / "latents" / ".removed-1234"
    make(removed, [1])
    freed, _ = collect(cache, {cache / "latents" / "aaaaaaaaaaaa": {key(number) for number in range(6)}})
    assert [part.nbytes for part in freed if part.path.name == "aaaaaaaaaaaa"] == [1000]
    assert not leftover.exists()
    assert not removed.exists()


def test_sizes_are_told_in_three_digits() -> None:
    assert [size_text(n) for n in (17, 1234, 5_678_900, 2 * 10**9, 3 * 10**12)] == [
        "17 bytes",
        "1.23 KB",
        "5.68 MB",
        "2 GB",
        "3 TB",
    ]
