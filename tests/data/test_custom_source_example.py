from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_source.py"


def test_the_example_runs_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "main: 3 images, 3 with a caption" in printed
    assert "sheet of paper" in printed
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60
