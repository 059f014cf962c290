"""Whole models in one file, read back as the folders that they were written from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff.formats import single_file
from hcpdiff.formats.single_file.inverse import table_of
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from tests.formats.single_models import MODELS, assert_same, state


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_its_single_file_bit_by_bit(name: str, made: Callable[[str], Path]) -> None:
    root, kind = made(name), MODELS[name][0]
    original, loaded = kind.from_pretrained(root / "folder"), kind.from_pretrained(root / "model.safetensors")
    assert single_file.Model(root / "model.safetensors").layout.name == name
    assert_same(state(loaded), state(original))
    assert loaded.scheduler == original.scheduler
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        ours, theirs = loaded.encode_prompt(["ab c"]), original.encode_prompt(["ab c"])
    assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("name", MODELS)
def test_its_tensors_are_found_without_a_model(name: str, made: Callable[[str], Path]) -> None:
    root = made(name)
    stored = single_file.Model(root / "model.safetensors")
    for folder, part in stored.layout.parts.items():
        keys = stored.keys[folder]
        table = table_of(part, {key: stored.weights.shapes[full] for key, full in keys.items()})
        assert {source.key for source in table.values()} == keys.keys()
        files = (root / "folder" / folder).glob("*.safetensors") if keys else ()
        for key, tensor in ((key, tensor) for file in files for key, tensor in load_file(file).items()):
            source = table[key] if key in table else table[f"text_model.{key}"]
            assert torch.equal(source.take(stored.weights.read(keys[source.key], rows=source.rows)), tensor)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3-medium", "flux-dev"])
def test_dtypes_are_those_asked_for(name: str, made: Callable[[str], Path]) -> None:
    root, kind = made(name), MODELS[name][0]
    arguments = {"dtype": "bfloat16", "text_dtype": "float16"}
    loaded = kind.from_pretrained(root / "model.safetensors", **arguments)
    assert_same(state(loaded), state(kind.from_pretrained(root / "folder", **arguments)))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3.5-medium", "flux-schnell"])
def test_skeleton_and_latents_need_no_weights(name: str, made: Callable[[str], Path]) -> None:
    root, kind = made(name), MODELS[name][0]
    file = root / "model.safetensors"
    for part in ("denoiser", "vae", "text_encoders"):
        ours, theirs = kind.skeleton(part, file).state_dict(), kind.skeleton(part, root / "folder").state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert kind.latent_spec(file) == kind.latent_spec(root / "folder")


def test_parts_that_the_file_lacks_are_read_from_the_folder_of_configs(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    root = made("flux-dev")
    whole = load_file(root / "model.safetensors")
    prefix = "model.diffusion_model."
    bare = {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}
    save_file(bare, tmp_path / "flux.safetensors")
    files = Flux._files(tmp_path / "flux.safetensors", revision=None)
    with pytest.raises(FileNotFoundError, match=r"no vae in this file, whose keys would start with vae\.; set configs"):
        files.read("vae", torch.float32)
    shutil.copytree(root / "folder", tmp_path / "flux")
    assert_same(
        state(Flux.from_pretrained(tmp_path / "flux.safetensors")), state(Flux.from_pretrained(root / "folder"))
    )


def test_sd3_without_a_t5_does_without_one(made: Callable[[str], Path], tmp_path: Path) -> None:
    root = made("sd3-medium")
    tensors = {k: v for k, v in load_file(root / "model.safetensors").items() if ".t5xxl." not in k}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(root / "model", tmp_path / "model")
    assert list(SD3.from_pretrained(tmp_path / "model.safetensors").text_encoders) == ["clip_l", "clip_g"]


def test_without_a_projection_in_the_file_the_first_clip_of_sd3_does_not_project(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    root = made("sd3-medium")
    tensors = load_file(root / "model.safetensors")
    del tensors["text_encoders.clip_l.transformer.text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(root / "model", tmp_path / "model")
    loaded: Any = SD3.from_pretrained(tmp_path / "model.safetensors")
    assert torch.equal(loaded.text_encoders["clip_l"].text_projection.weight, torch.eye(8))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3.5-large", "flux-dev"])
def test_configs_may_lie_elsewhere_and_are_of_single_files_only(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    root, kind = made(name), MODELS[name][0]
    file = tmp_path / "other.safetensors"
    shutil.copy(root / "model.safetensors", file)
    assert_same(state(kind.from_pretrained(file, configs=root / "model")), state(kind.from_pretrained(root / "folder")))
    assert kind.latent_spec(file, configs=root / "model") == kind.latent_spec(root / "folder")
    with pytest.raises(ValueError, match="configs: only a single file takes them"):
        kind.from_pretrained(root / "folder", configs=root / "model")


def test_parts_may_start_from_scratch(made: Callable[[str], Path]) -> None:
    root, arguments = made("sd1"), {"from_scratch": ["denoiser"], "seed": 3}
    loaded = StableDiffusion.from_pretrained(root / "model.safetensors", **arguments)
    assert_same(state(loaded), state(StableDiffusion.from_pretrained(root / "folder", **arguments)))


@pytest.mark.parametrize(("width", "kind"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_a_unet_alone_is_recognised_by_the_width_of_its_text(tmp_path: Path, width: int, kind: str) -> None:
    names = {"input_blocks.0.0.weight": (4,), "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (2, width)}
    save_file({f"model.diffusion_model.{k}": torch.zeros(v) for k, v in names.items()}, tmp_path / "a.safetensors")
    assert single_file.Model(tmp_path / "a.safetensors").layout.name == kind


def test_published_extras_beside_the_weights_are_passed_over(made: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(made("sd2") / "model.safetensors")
    for key in (
        *("cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection", "model_ema.decay", "betas"),
        *("cond_stage_model.model.transformer.resblocks.23.ln_1.weight", "first_stage_model.loss.logvar"),
    ):
        tensors[key] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(made("sd2") / "model", tmp_path / "model")
    loaded = StableDiffusion.from_pretrained(tmp_path / "model.safetensors")
    assert_same(state(loaded), state(StableDiffusion.from_pretrained(made("sd2") / "folder")))


def test_stable_diffusion_2_is_taken_for_v_prediction_and_the_log_says_so_unless_it_is_told(
    made: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(made("sd2") / "model.safetensors", path)
    shutil.copytree(made("sd2") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("scheduler"))
    assert StableDiffusion.from_pretrained(path).process.prediction == "v_prediction"
    assert (
        f"{path}: files of Stable Diffusion 2 do not say what the model predicts; taken as v_prediction" in caplog.text
    )
    assert "set model.prediction: epsilon" in caplog.text
    caplog.clear()
    for told in ("epsilon", "v_prediction"):
        assert StableDiffusion.from_pretrained(path, prediction=told).process.prediction == told
    StableDiffusion.from_pretrained(made("sd2") / "folder")
    assert "do not say" not in caplog.text
