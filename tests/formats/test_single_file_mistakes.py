"""Single files that are broken, incomplete, or of another model, and what is said of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff.formats import single_file
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sdxl import SDXL


def test_a_unet_of_another_width_and_the_refiner_are_named(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, 640),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"text of width \[640\], without text encoders; expected 768, 1024, 2048"):
        single_file.Model(tmp_path / "a.safetensors")
    save_file({**tensors, "conditioner.embedders.0.model.ln_final.bias": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="this is the refiner of Stable Diffusion XL"):
        single_file.Model(tmp_path / "a.safetensors")


def test_missing_tokenizers_are_an_error_that_says_where_to_put_them(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(made("sd1") / "model.safetensors", tmp_path / "alone.safetensors")
    files = StableDiffusion._files(tmp_path / "alone.safetensors", revision=None)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizers.*set configs to a folder .* has tokenizer/"):
        files.tokenizer("text_encoders.clip")


def test_sizes_of_another_model_are_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(made("sd1") / "model.safetensors", tmp_path / "alone.safetensors")
    files = StableDiffusion._files(tmp_path / "alone.safetensors", revision=None)
    with pytest.raises(ValueError, match=r"text_encoder is not that of Stable Diffusion 1\.x.* missing "):
        files.read("text_encoders.clip", torch.float32)
    tensors = load_file(tmp_path / "alone.safetensors")
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "alone.safetensors")
    shutil.copytree(made("sd1") / "model", tmp_path / "alone")
    with pytest.raises(ValueError, match=r"model\.diffusion_model\.out\.2\.bias has shape \(3,\); expected \(4,\)"):
        StableDiffusion.from_pretrained(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unknown_tensors_are_named(made: Callable[[str], Path], tmp_path: Path, change: str) -> None:
    tensors = load_file(made("flux-dev") / "model.safetensors")
    if change == "missing":
        del tensors["model.diffusion_model.txt_in.weight"]
    else:  # as files in float8 with scales have them
        tensors["model.diffusion_model.txt_in.scale_weight"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(made("flux-dev") / "model", tmp_path / "model")
    with pytest.raises(ValueError, match=rf"transformer is not that of FLUX\.1 dev.* 1 {change} \(.*txt_in\."):
        Flux.from_pretrained(tmp_path / "model.safetensors")


def test_wrong_files_are_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((made("sd1") / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"broken\.safetensors: no whole safetensors file .*download it again"):
        StableDiffusion.from_pretrained(broken)
    with pytest.raises(FileNotFoundError, match=r"no file at .*nowhere\.safetensors"):
        StableDiffusion.from_pretrained(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"this is Stable Diffusion 1\.x; here a StableDiffusionXLPipeline is needed"):
        SDXL.from_pretrained(made("sd1") / "model.safetensors")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, broken)
    with pytest.raises(ValueError, match="this is an adapter such as a LoRA"):
        SDXL.from_pretrained(broken)
    save_file({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, broken)
    with pytest.raises(ValueError, match="weights of one part in diffusers' layout"):
        SDXL.from_pretrained(broken)
    save_file({"a": torch.zeros(1)}, broken)
    with pytest.raises(ValueError, match=r"no known model in 1 tensors \(a, \.\.\.\)"):
        SDXL.from_pretrained(broken)


def test_a_revision_needs_a_repository(made: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"revision: .* is a file and has none"):
        StableDiffusion.from_pretrained(made("sd1") / "model.safetensors", revision="main")
