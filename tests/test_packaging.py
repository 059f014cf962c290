"""The wheel in a fresh environment and an empty folder: what somebody gets who has no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path) -> str:
    """Run it without what the surrounding environment would add; its output."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def hcpdiff(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command of a new environment with nothing but the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    call(commands / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    yield commands / "hcpdiff"
    shutil.rmtree(folder)  # a gigabyte


def test_the_wheel_is_small_and_has_configs_model_and_example_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in [
        ("cfgs", "hcpdiff/cfgs"),
        ("examples/data", "hcpdiff/example_data"),
        ("hcpdiff/assets/tiny-sd3", "hcpdiff/assets/tiny-sd3"),
    ]:
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        assert {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files} <= names
    assert "hcpdiff/cfgs/lora.yaml" in names
    assert all(name.startswith(("hcpdiff/", "hcpdiff-")) for name in names)
    assert wheel.stat().st_size <= 12e6


def test_the_wheel_trains_and_makes_pictures_in_an_empty_folder(hcpdiff: Path, tmp_path: Path) -> None:
    call(hcpdiff, "init", "demo", cwd=tmp_path)
    demo = tmp_path / "demo"
    assert call(hcpdiff, "check", "--cfg", "cfgs/lora.yaml", cwd=demo) == "cfgs/lora.yaml: no mistakes\n"
    call(hcpdiff, "train", "--cfg", "cfgs/lora.yaml", "train.steps=2", cwd=demo)
    assert (demo / "exps/lora/style.safetensors").is_file()
    assert (demo / "exps/lora/previews/before-after.png").is_file()
    call(hcpdiff, "infer", "--cfg", "cfgs/infer.yaml", "infer.steps=2", "--out", "pictures", cwd=demo)
    assert (demo / "pictures/sheet.png").is_file()
