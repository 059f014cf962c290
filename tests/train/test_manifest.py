from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.train import runs


def seen(folder: Path, name: str = "main") -> dict[str, int]:
    with (folder / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["key"]: int(row["seen"]) for row in csv.DictReader(file)}


def test_a_run_leaves_a_manifest_of_what_it_has_shown(tmp_path: Path) -> None:
    trainer = runs.make(tmp_path, steps=6, accumulate=2, data={"main": runs.pictures(), "more": runs.pictures(5)})
    trainer.fit()
    assert trainer.shown == {"main": 12, "more": 12}
    assert set(seen(tmp_path).values()) == {3}  # 12 batches of 2 are 3 epochs of 7 images
    assert set(seen(tmp_path, "more").values()) == {4}
    assert (tmp_path / "data" / "main.bad.csv").read_text(encoding="utf-8") == "key,reason\n"


def test_a_run_that_goes_on_counts_from_the_first_batch(tmp_path: Path) -> None:
    runs.make(tmp_path, steps=2, save_every=2).fit()
    assert sum(seen(tmp_path).values()) == 4
    rest = runs.make(tmp_path, steps=4, save_every=2)
    rest.resume(tmp_path / "checkpoints" / "step-000002")
    rest.fit()
    assert seen(tmp_path) == dict.fromkeys(seen(tmp_path), 1)  # four batches of two are all seven images


def test_the_log_says_whether_all_was_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="hcpdiff.train"):
        runs.make(tmp_path, steps=8).fit()
    assert "data.main: in 2 epochs 7 of 7 images were seen exactly repeat times an epoch" in caplog.messages
