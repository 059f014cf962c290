"""`hcpdiff init`: a folder to start from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hcpdiff import cli
from hcpdiff.project import create

ROOT = Path(__file__).parent.parent


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_gets_every_shipped_config_and_the_example_data(tmp_path: Path) -> None:
    written = create(tmp_path / "demo")
    assert tmp_path / "demo" / "cfgs" / "lora.yaml" in written
    assert all(path.exists() for path in written)
    assert {f"cfgs/{path.name}" for path in (ROOT / "cfgs").glob("*.yaml")} < files(tmp_path / "demo")
    assert (tmp_path / "demo/examples/data/striped/captions.json").is_file()


def test_every_file_that_a_starter_config_reads_is_there(tmp_path: Path) -> None:
    create(tmp_path)
    named = {
        match
        for path in (tmp_path / "cfgs").glob("*.yaml")
        for match in re.findall(r"examples/data[\w/.]*", path.read_text())
    }
    assert named
    assert all((tmp_path / name).exists() for name in named)


def test_the_starter_configs_have_no_mistakes_in_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "demo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "now: cd demo && hcpdiff train --cfg cfgs/lora.yaml"
    monkeypatch.chdir(tmp_path / "demo")
    for name in ("lora", "controlnet", "full_finetune", "textual_inversion"):
        assert cli.main(["check", "--cfg", f"cfgs/{name}.yaml"]) == 0


def test_a_folder_that_is_there_keeps_its_other_files(tmp_path: Path) -> None:
    (tmp_path / "cfgs").mkdir()
    (tmp_path / "cfgs" / "mine.yaml").write_text("mine")
    create(tmp_path)
    assert (tmp_path / "cfgs" / "mine.yaml").read_text() == "mine"


def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "cfgs").mkdir()
    (tmp_path / "cfgs" / "lora.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"nothing was written, because .*lora\.yaml is there already; choose another"):
        create(tmp_path)
    assert files(tmp_path) == {"cfgs/lora.yaml"}
    assert (tmp_path / "cfgs" / "lora.yaml").read_text() == "mine"


def test_a_second_time_says_how_many_are_in_the_way(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(ValueError, match=r"and \d+ more are there already"):
        create(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ValueError, match="taken: this is a file; choose another name for the folder"):
        create(tmp_path / "taken")
