"""Single files as they are written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hcpdiff.formats import single_file
from hcpdiff.models.opening import convert_model
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sdxl import SDXL
from hcpdiff.plugins import PluginSpec, WrapPluginBlock, attach
from tests.formats.single_models import MODELS, assert_same, state


@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_written_as_the_same_file_again(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    root, kind = made(name), MODELS[name][0]
    single_file.save(kind.from_pretrained(root / "model.safetensors"), tmp_path / "again.safetensors")
    assert_same(load_file(tmp_path / "again.safetensors"), load_file(root / "model.safetensors"))


def test_weights_are_copied_out_of_the_file(made: Callable[[str], Path], tmp_path: Path) -> None:
    root = made("sd1")
    shutil.copytree(root / "model", tmp_path / "model")
    shutil.copy(root / "model.safetensors", tmp_path / "model.safetensors")
    loaded = StableDiffusion.from_pretrained(tmp_path / "model.safetensors")
    before = {key: tensor.clone() for key, tensor in state(loaded).items()}
    single_file.save(loaded, tmp_path / "model.safetensors", dtype=torch.float16)
    assert_same(state(loaded), before)
    written = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}


def test_marks_of_v_prediction_are_heeded_and_written(made: Callable[[str], Path], tmp_path: Path) -> None:
    from_folder = SDXL.from_pretrained(made("sdxl") / "folder", prediction="v_prediction", zero_terminal_snr=True)
    single_file.save(from_folder, tmp_path / "xl.safetensors")
    settings = SDXL._files(tmp_path / "xl.safetensors", revision=None).scheduler({"prediction_type": "epsilon"})
    assert settings == {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def test_other_endings_are_not_written(made: Callable[[str], Path], tmp_path: Path) -> None:
    family = StableDiffusion.from_pretrained(made("sd1") / "folder")
    with pytest.raises(ValueError, match=r"a single file is written as \.safetensors"):
        single_file.save(family, tmp_path / "model.ckpt")


def test_of_a_layer_in_whose_place_a_plugin_stands_the_layer_is_written(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    family = StableDiffusion.from_pretrained(made("sd1") / "folder")
    attach(family, {"twice": PluginSpec(Doubled, on="text_encoders.clip", layers=["final_layer_norm"])})
    single_file.save(family, tmp_path / "model.safetensors")
    assert_same(load_file(tmp_path / "model.safetensors"), load_file(made("sd1") / "model.safetensors"))


class Doubled(WrapPluginBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.host(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_folder_and_single_file_are_made_of_each_other_byte_by_byte(
    name: str, dtype: torch.dtype, made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, file, again = tmp_path / "folder", tmp_path / "model.safetensors", tmp_path / "again"
    convert_model(made(name) / "folder", folder, dtype=dtype)
    convert_model(folder, file)
    convert_model(file, again, configs=folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [path for path in files if (folder / path).read_bytes() != (again / path).read_bytes()] == []
    assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}
