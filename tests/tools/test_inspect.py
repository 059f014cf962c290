"""What is told of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff.formats.convert import convert
from hcpdiff.formats.word_files import write
from hcpdiff.plugins import ControlNet, PluginSpec
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.weights import save
from hcpdiff.tools.inspect import inspect
from hcpdiff.tools.report import LayerReport, blocks
from hcpdiff.train import checkpoint
from tests.tools.tiny_models import family, lora, model


def told(path: Path, **options: Any) -> dict[str, str]:
    """{first word: rest} of the lines for people."""
    lines = [line for line in inspect(path, **options).lines() if not line.startswith(" ")]
    return {line.split("  ")[0]: line[14:].strip() for line in lines}


def test_a_lora_is_told_with_its_effect(tmp_path: Path) -> None:
    path = lora("sd3-medium", tmp_path / "style.safetensors", rank=4)
    report = inspect(path)
    assert (report.kind, report.family, report.form) == ("LoRA", "sd3", "diffusers")
    assert {layer.rank for layer in report.layers} == {4}
    assert report.parameters == sum(layer.parameters for layer in report.layers)
    state = load_file(path)
    up, down = (state[f"transformer.proj_out.lora_{x}.weight"] for x in "BA")
    layer = next(layer for layer in report.layers if layer.name == "denoiser.proj_out")
    assert layer.norm == pytest.approx(float((up @ down).norm()), rel=1e-5)
    lines = told(path)
    assert lines["kind"] == "LoRA, sd3, in diffusers's form"
    assert lines["rank"] == "4"
    assert lines["effect"].startswith("norm ")
    assert len(lines["sha256"]) == 64


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_every_form_is_known(form: str, tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors", rank=4)
    report = inspect(convert(path, form, tmp_path / f"x{'' if form == 'peft' else '.safetensors'}", "sd"), family="sd")
    assert (report.kind, report.form) == ("LoRA", form)
    assert {layer.rank for layer in report.layers} == {4}
    if form == "kohya":
        assert {layer.alpha for layer in report.layers} == {2.0}


def test_layers_that_change_nothing_and_broken_values_are_counted(tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors")
    state = load_file(path)
    ups = [key for key in state if key.endswith("lora_up.weight")]
    broken = {ups[0]: torch.zeros_like(state[ups[0]]), ups[1]: torch.full_like(state[ups[1]], float("nan"))}
    save_file(state | broken, path)
    report = inspect(path, family="sd")
    count = len(report.layers)
    notes = [line for line in report.lines() if line.startswith("note")]
    assert [line[14:].strip() for line in notes] == [
        f"1 of {count} layers change nothing",
        f"1 of {count} layers have values that are no numbers",
    ]
    values = json.loads(report.json())
    assert sorted(filter(None, (layer["problem"] for layer in values["layers"]))) == ["changes nothing", "no numbers"]
    assert sum(line.endswith("changes nothing") for line in report.lines(layers=True)) == 1


def test_headers_of_other_programs_are_told(tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors")
    header = {
        "ss_tag_frequency": json.dumps({"1_cat": {"cat": 7, "sitting": 2}, "2_dog": {"dog": 3, "sitting": 4}}),
        "modelspec.trigger_phrase": "sks cat",
        "ss_comment": "[none] " + "x" * 300,
    }
    save_file(load_file(path), path, header)
    report = inspect(path, family="sd")
    lines = told(path, family="sd")
    assert lines["trigger words"] == "sks cat"
    assert lines["tags"] == "cat (7), sitting (6), dog (3)"
    assert report.metadata["ss_tag_frequency"]["2_dog"]["dog"] == 3
    (comment,) = [line for line in report.lines() if "ss_comment" in line]
    assert comment.endswith("... (307 characters)")


def test_a_lora_that_is_not_understood_is_still_told(tmp_path: Path) -> None:
    save_file({"lora_unet_nowhere.lora_down.weight": torch.zeros(1, 2)}, tmp_path / "x.safetensors")
    report = inspect(tmp_path / "x.safetensors", family="sd")
    assert report.kind == "LoRA"
    assert report.tensors == 1
    assert "the other matrix is missing" in report.notes[0]


@pytest.mark.parametrize("format", ["kohya", "a1111", "diffusers", "bundle"])
def test_learned_words_are_told(format: Any, tmp_path: Path) -> None:
    (path,) = write({"<sks>": {"clip": torch.zeros(3, 8)}}, tmp_path, format)
    report = inspect(path)
    assert report.kind == "learned word"
    assert "3 vectors of width 8" in report.notes[0]


def test_a_controlnet_is_told(tmp_path: Path) -> None:
    live = family("sd3-medium", model("sd3-medium") / "folder")
    group = attach(live, {"control": PluginSpec(ControlNet, options={"num_layers": 1})})
    save(group, "control", tmp_path / "control.safetensors")
    report = inspect(tmp_path / "control.safetensors")
    assert (report.kind, report.family) == ("ControlNet", "sd3")
    assert "num_layers=1" in report.notes[0]


def test_other_controlnets_are_told(tmp_path: Path) -> None:
    save_file({"controlnet_cond_embedding.conv_in.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert inspect(tmp_path / "x.safetensors").kind == "ControlNet"


@pytest.mark.parametrize("name", ["sd1", "flux-dev"])
def test_a_model_is_told_alike_in_a_folder_and_in_a_file(name: str) -> None:
    folder, file = (inspect(model(name) / layout) for layout in ("folder", "file.safetensors"))
    assert (folder.kind, file.kind) == ("model in a folder", "model in one file")
    assert file.family == {"sd1": "Stable Diffusion 1.x", "flux-dev": "FLUX.1 dev"}[name]
    shapes = {layer.name: layer.shape for layer in folder.layers}
    assert all(shapes[layer.name] == layer.shape for layer in file.layers)
    assert any(line.startswith("  denoiser.conv_in ") or "norm_out" in line for line in folder.lines(layers=True))


def test_parts_checkpoints_and_other_files_are_told(tmp_path: Path) -> None:
    part = inspect(model("sd1") / "folder" / "unet")
    assert (part.kind, part.family) == ("part of a model", "UNet2DConditionModel")
    weights = inspect(model("sd1") / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert weights.kind == "tensors"
    assert "the weights of one part in diffusers' layout" in weights.notes[0]
    folder = checkpoint.save(tmp_path, 7, {"weights": {"a": torch.zeros(3)}}, keep_last=1)
    saved = inspect(folder)
    assert (saved.kind, saved.parameters) == ("checkpoint of a run", 3)
    assert saved.notes == ["after step 7", "weights.safetensors: 1 tensors"]
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(3)}, tmp_path / "loha.safetensors")
    assert inspect(tmp_path / "loha.safetensors").kind == "LoRA"


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.safetensors").write_text("a")
    (tmp_path / "a.pt").write_text("a")
    (tmp_path / "empty").mkdir()
    for name, kind, message in [
        ("a.txt", ValueError, "no file of weights; they end in .safetensors, .ckpt"),
        ("a.safetensors", ValueError, "no whole safetensors file"),
        ("a.pt", ValueError, "no plain tensors"),
        ("empty", FileNotFoundError, "no model_index.json here"),
        ("nowhere", FileNotFoundError, "no folder at"),
        ("nowhere.safetensors", FileNotFoundError, "no file at"),
    ]:
        with pytest.raises(kind, match=message):
            inspect(tmp_path / name)


def test_blocks_that_are_alike_are_told_together() -> None:
    names = [f"denoiser.blocks.{i}.{layer}" for i in range(4) for layer in ("a", "b")] + ["denoiser.out"]
    assert blocks(names) == [("denoiser.blocks.0 to 3, each", 2), ("denoiser.out", 1)]
    assert blocks([*names, "denoiser.blocks.2.c"]) == [
        ("denoiser.blocks.0 to 1, each", 2),
        ("denoiser.blocks.2", 3),
        ("denoiser.blocks.3", 2),
        ("denoiser.out", 1),
    ]


def test_a_layer_without_an_update_has_no_problem() -> None:
    assert LayerReport("a", 3).problem is None
