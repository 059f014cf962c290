"""The folder of a stock pipeline of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.stock_families import FAMILIES


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """{family: the stock pipeline, and its folder}."""
    known: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in known:
            pipeline, folder = FAMILIES[name][1](), tmp_path_factory.mktemp(name)
            pipeline.save_pretrained(folder)
            known[name] = pipeline, folder
        return known[name]

    return make
