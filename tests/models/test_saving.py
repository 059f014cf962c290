"""Folders as they are written: in any dtype, in shards, for the stock pipelines too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.models.stock_families import FAMILIES, tensors


@pytest.mark.parametrize("name", FAMILIES)
def test_shards_load_here_and_in_the_stock_pipeline(
    name: str,
    stock: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
) -> None:
    pipeline, folder = stock(name)
    family = FAMILIES[name][0]
    family.from_pretrained(folder).save_pretrained(tmp_path / "sharded", shard_size="6KB")
    again = type(pipeline).from_pretrained(tmp_path / "sharded")
    ours = family.from_pretrained(tmp_path / "sharded")
    for path, part in family.parts.items():
        expected = tensors(getattr(pipeline, part.folder))
        files = sorted((tmp_path / "sharded" / part.folder).glob("*.safetensors"))
        index = next((tmp_path / "sharded" / part.folder).glob("*.safetensors.index.json"))
        assert len(files) > 1
        assert {file.name for file in files} == set(json.loads(index.read_text())["weight_map"].values())
        for found in (tensors(getattr(again, part.folder)), tensors(ours.get_submodule(path))):
            assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", ["sdxl", "sd3", "zimage"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_weights_are_written_in_the_dtype_that_is_asked_for(
    name: str,
    dtype: torch.dtype,
    stock: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
) -> None:
    family = FAMILIES[name][0].from_pretrained(stock(name)[1])
    family.save_pretrained(tmp_path / "model", dtype=dtype)
    for path, part in family.parts.items():
        (file,) = (tmp_path / "model" / part.folder).glob("*.safetensors")
        own = family.get_submodule(path).state_dict()
        for key, written in load_file(file).items():
            assert torch.equal(written, own[key].to(dtype)), key
        assert {tensor.dtype for tensor in own.values()} == {torch.float32}


def test_what_is_written_is_what_transformers_writes(
    stock: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
) -> None:
    family = FAMILIES["sd3"][0].from_pretrained(stock("sd3")[1])
    family.save_pretrained(tmp_path / "model")
    family.text_encoders["t5"].save_pretrained(tmp_path / "t5")
    for name in ("config.json", "model.safetensors"):
        ours, theirs = (folder / name for folder in (tmp_path / "model" / "text_encoder_3", tmp_path / "t5"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_writing_that_fails_leaves_what_was_there(
    stock: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
) -> None:
    family: Any = FAMILIES["sd3"][0].from_pretrained(stock("sd3")[1])
    family.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    family.vae.encoder.conv_in.weight = nn.Parameter(family.vae.encoder.conv_in.weight.to("meta"))
    with pytest.raises(NotImplementedError):
        family.save_pretrained(tmp_path / "model", dtype="float16")
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("size", ["much", "0", "-5GB", "5TB"])
def test_a_shard_size_that_is_none_is_named(
    size: str,
    stock: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
) -> None:
    family = FAMILIES["sd"][0].from_pretrained(stock("sd")[1])
    with pytest.raises(ValueError, match=rf"shard_size: '{size}' is no size of a file; use e\.g\. 5GB or 500MB"):
        family.save_pretrained(tmp_path / "model", shard_size=size)
