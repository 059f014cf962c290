"""A single file of each family, and the folder that it was made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hcpdiff.formats import single_file
from tests.formats.single_models import MODELS


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """{name}: a folder with `folder/`, `model.safetensors` and `model/`, the folder without weights."""
    known: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in known:
            root = known[name] = tmp_path_factory.mktemp("single")
            kind, pipeline = MODELS[name]
            pipeline().save_pretrained(root / "saved")
            family = kind.from_pretrained(root / "saved")
            family.save_pretrained(root / "folder")
            single_file.save(family, root / "model.safetensors")
            shutil.copytree(root / "folder", root / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        return known[name]

    return make
