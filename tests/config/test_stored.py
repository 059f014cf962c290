"""The config in the header of what a run wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hcpdiff.config import ConfigError, leaves, load, require
from hcpdiff.config.stored import CONFIG, header

RUN = "name: cats\nexp_dir: exps/${name}\nseed: 3\nmodel: {_target_: hcpdiff.models.SD3.from_pretrained, path: a}\n"


def adapter(path: Path, text: str | None = RUN) -> Path:
    save_file({"x": torch.zeros(2)}, path, {"format": "pt"} if text is None else {CONFIG: text})
    return path


def test_a_file_that_a_run_wrote_is_a_config(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a cat (1).safetensors")
    config = load(path, ["name=dogs", "train.steps=5"])
    assert (config["name"], config["exp_dir"], config["seed"], config["train"]) == (
        "dogs",
        "exps/dogs",
        3,
        {"steps": 5},
    )
    origins = {key: str(origin) for key, _, origin in leaves(config)}
    assert origins["seed"] == str(path)
    assert origins["name"] == "override"


def test_what_it_says_is_no_more_trusted_than_a_file(tmp_path: Path) -> None:
    path = adapter(tmp_path / "x.safetensors", "model: {_target_: os.system, command: 'true'}\n")
    with pytest.raises(ConfigError, match=r"x\.safetensors: model\._target_: 'os\.system'"):
        require(load(path), "model")


def test_mistakes_name_the_file_that_the_user_gave(tmp_path: Path) -> None:
    path = adapter(tmp_path / "x.safetensors", "a: [1\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: broken YAML")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.safetensors: this is no safetensors file"):
        load(path)


def test_a_file_of_another_program_has_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.safetensors: no run of hcpdiff is in its header; give a YAML file"):
        load(adapter(tmp_path / "x.safetensors", None))


def test_the_header_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, path, {"a": json.dumps(["é"])})
    assert header(path) == {"a": json.dumps(["é"])}
