"""Models whose family nobody names: opened, and converted between folders and single files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff.formats import single_file
from hcpdiff.models.opening import convert_model, open_model
from tests.models.stock_families import FAMILIES

Stock = Callable[[str], tuple[Any, Path]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_tells_its_family(name: str, stock: Stock) -> None:
    kind, model = FAMILIES[name][0], open_model(stock(name)[1], dtype="bfloat16")
    assert type(model) is kind
    assert next(model.denoiser.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_a_single_file_tells_its_family(name: str, stock: Stock, tmp_path: Path) -> None:
    kind, folder = FAMILIES[name][0], stock(name)[1]
    assert convert_model(folder, tmp_path / "model.safetensors", dtype="fp16") == tmp_path / "model.safetensors"
    assert type(open_model(tmp_path / "model.safetensors", configs=folder)) is kind
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}


def test_an_unknown_family_is_an_error_that_lists_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    known = r"StableDiffusionPipeline \(StableDiffusion\), .*FluxPipeline \(Flux\)"
    with pytest.raises(ValueError, match=rf"this is a WanPipeline, of no family that is known; known are {known}"):
        open_model(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no known model in 1 tensors"):
        open_model(tmp_path / "a.safetensors")


def test_a_folder_becomes_one_of_another_dtype_in_shards(stock: Stock, tmp_path: Path) -> None:
    folder = stock("pixart")[1]
    convert_model(folder, tmp_path / "small", dtype="bfloat16", shard_size="20KB")
    read = open_model(tmp_path / "small", dtype=None, vae_dtype=None)
    assert len(list((tmp_path / "small" / "transformer").glob("*.safetensors"))) > 1
    for key, tensor in open_model(folder).state_dict().items():
        assert torch.equal(read.state_dict()[key], tensor.to(torch.bfloat16)), key


def test_a_single_file_becomes_another_one_without_tokenizers_and_without_what_is_no_part(
    stock: Stock, tmp_path: Path
) -> None:
    convert_model(stock("sd")[1], tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save({"state_dict": tensors | {"model_ema.decay": torch.ones(1)}}, tmp_path / "model.ckpt")
    convert_model(tmp_path / "model.ckpt", tmp_path / "half.safetensors", dtype="float16")
    half = load_file(tmp_path / "half.safetensors")
    assert half.keys() == tensors.keys()
    assert all(torch.equal(half[key], tensor.to(torch.float16)) for key, tensor in tensors.items())


def test_marks_of_a_single_file_are_kept(stock: Stock, tmp_path: Path) -> None:
    family = open_model(stock("sdxl")[1], prediction="v_prediction")
    single_file.save(family, tmp_path / "one.safetensors")
    convert_model(tmp_path / "one.safetensors", tmp_path / "two.safetensors", dtype="bf16")
    assert single_file.Model(tmp_path / "two.safetensors").scheduler["prediction_type"] == "v_prediction"


def test_what_would_do_nothing_or_overwrite_is_an_error(stock: Stock, tmp_path: Path) -> None:
    folder, out = stock("sd")[1], tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"shard_size: .*\.safetensors is a single file, for which it does nothing"):
        convert_model(folder, out, shard_size="5GB")
    with pytest.raises(ValueError, match=r"configs: .*model\.safetensors is a single file"):
        convert_model(folder, out, configs=folder)
    with pytest.raises(ValueError, match="configs: only a single file takes them from elsewhere"):
        convert_model(folder, tmp_path / "folder", configs=folder)
    with pytest.raises(ValueError, match=r"pixart|there is no single file of this family"):
        convert_model(stock("pixart")[1], out)
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"")
    with pytest.raises(ValueError, match=r"out: .*model\.safetensors is there already; name another"):
        convert_model(folder, out)


def test_a_folder_needs_tokenizers_that_a_single_file_has_not(stock: Stock, tmp_path: Path) -> None:
    convert_model(stock("sdxl")[1], tmp_path / "model.safetensors")
    shutil.copytree(stock("sdxl")[1], tmp_path / "other", ignore=shutil.ignore_patterns("tokenizer*", "*.safetensors"))
    with pytest.raises(FileNotFoundError, match="set configs to a folder in diffusers' layout"):
        convert_model(tmp_path / "model.safetensors", tmp_path / "folder", configs=tmp_path / "other")
