from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from hcpdiff.plugins import DoRA, LoKr, PluginSpec
from tests.train import runs


@pytest.mark.parametrize(
    ("plugin", "options", "expected"),
    [
        (DoRA, {"rank": 2}, "loads in: diffusers (max error"),
        (DoRA, {"rank": 2, "on_input": True}, "loads in: ComfyUI (max error"),
        (LoKr, {"rank": 1, "factor": 4}, "loads in: ComfyUI, LyCORIS (max error"),
    ],
)
def test_a_run_says_where_the_file_of_a_change_of_weights_loads(
    plugin: type[Any], options: dict[str, Any], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = PluginSpec(plugin, layers=[r"re:transformer_blocks\..*attn\.to_q"], lr=1e-2, options=options)
    trainer = runs.make(tmp_path, plugins={"style": spec}, steps=2)
    with caplog.at_level(logging.INFO, "hcpdiff.train"):
        trainer.fit()
    assert f"style.safetensors {expected}" in caplog.text
    if plugin is DoRA:
        assert "not in kohya: " in caplog.text
    if options.get("on_input") is None and plugin is DoRA:
        assert "not in ComfyUI: its effect differs by" in caplog.text
        assert "as it leaves out the magnitudes" in caplog.text
