"""Configs in temporary folders, and `toybox`, a small library with sections of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hcpdiff.config import loading, sections
from hcpdiff.config.checking import check
from hcpdiff.config.loading import Config, load

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below the current folder, which is a new one."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def shipped(write: Write, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write`, with the configs that hcpdiff ships in the folder `shipped/`."""
    write("shipped/base/train.yaml", "# @package _global_\nseed: 1\nexp_dir: exps/${name}\ntrain:\n  steps: 100\n")
    write("shipped/model/square.yaml", "_target_: toybox.Square\nside: 2.0\n")
    write("shipped/model/big.yaml", "_target_: toybox.Square\nside: 9.0\n")
    write("shipped/lora.yaml", "defaults:\n  - base/train\n  - model: square\nname: lora\ntrain:\n  tags: [a, b]\n")
    monkeypatch.setattr(loading, "shipped_folder", lambda: Path.cwd() / "shipped")
    return write


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`toybox` can be imported, is trusted, and receives the sections."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toys"))
    monkeypatch.setenv("HCPDIFF_TRUST", "toybox")
    table = {"name": str, "exp_dir": str, "seed": int, "model": "toybox:Shape", "train": "toybox:Train"}
    monkeypatch.setattr(sections, "SECTIONS", {**table, "data": "{toybox:Parent}"})
    sections.annotation.cache_clear()
    yield
    sections.annotation.cache_clear()


@pytest.fixture
def mistakes(write: Write, toys: None) -> Callable[..., list[str]]:
    """The lines that `check` gives for a config of this text."""

    def mistakes_of(text: str, *overrides: str) -> list[str]:
        write("my.yaml", text)
        return [str(mistake) for mistake in check(load("my.yaml", overrides))]

    return mistakes_of


@pytest.fixture
def config(write: Write, toys: None) -> Callable[..., Config]:
    """A config of this text."""

    def config_of(text: str, *overrides: str) -> Config:
        return load(write("my.yaml", text), overrides)

    return config_of
