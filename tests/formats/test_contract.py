from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hcpdiff.formats import contract, diffusers, kohya, names
from hcpdiff.formats.lora_files import Update, write_tensors
from tests.formats import full_size


def trained(model: str, rank: int = 2, alpha: float | None = 1.0) -> dict[str, Update]:
    """A LoRA on a sample of a real model's layers, one per name of a layer; the widths are small."""
    generator = torch.Generator().manual_seed(0)
    chosen: dict[str, str] = {}
    for layer in full_size.layers(model):
        chosen[layer.rpartition("blocks.")[2].lstrip("0123456789.") + layer[:20]] = layer
    updates = {}
    for i, layer in enumerate(chosen.values()):
        rows = 24 if layer.endswith("proj_mlp") else 6
        down, up = (torch.randn(shape, generator=generator) for shape in ((rank, 6), (rows, rank)))
        updates[layer] = Update(down, up, 3.0 if alpha and i % 3 == 0 else alpha)
    return updates


def attention_and_mlp(updates: dict[str, Update], model: str) -> dict[str, Update]:
    inside = {"sd": ".attentions.", "sdxl": ".attentions.", "zimage": ""}.get(model, "_blocks.")
    return {k: u for k, u in updates.items() if inside in k or (k.startswith("text") and "encoder.layers" in k)}


@pytest.mark.parametrize(
    ("model", "loads", "missing"),
    [
        ("sd", "diffusers, ComfyUI, kohya, the web UI", None),
        ("sdxl", "diffusers, ComfyUI, kohya, the web UI", None),
        ("sd3.5", "diffusers, ComfyUI", "kohya"),
        ("flux", "diffusers, ComfyUI", "kohya"),
        ("pixart", "ComfyUI", None),
        ("zimage", "diffusers, ComfyUI", "musubi-tuner"),
        ("qwen_image", "diffusers, ComfyUI", "musubi-tuner"),
    ],
)
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_the_usual_form_does_elsewhere_what_it_does_here(
    model: str, loads: str, missing: str | None, alpha: float | None, tmp_path: Path
) -> None:
    arch = names.architecture(model.split(".")[0])
    updates = attention_and_mlp(trained(model, alpha=alpha), model)
    assert len(updates) >= 10
    tensors, header = diffusers.write(updates, arch) if arch.form == "diffusers" else (kohya.write(updates, arch), {})
    write_tensors(tmp_path / "x.safetensors", tensors, header)
    results = contract.check(tmp_path / "x.safetensors", updates, arch.name)
    assert contract.lines(results).startswith(f"loads in: {loads} (max error ")
    assert [result.program for result in results if not result.loads] == ([missing] if missing else [])
    assert max(result.error for result in results if result.loads) < 1e-5  # fp32


@pytest.mark.parametrize(
    ("model", "programs"), [("sd3.5", {"ComfyUI", "kohya"}), ("flux", {"ComfyUI", "kohya", "diffusers"})]
)
def test_fused_layers_do_in_the_original_code_what_their_parts_do(
    model: str, programs: set[str], tmp_path: Path
) -> None:
    arch = names.architecture(model.split(".")[0])
    updates = attention_and_mlp(trained(model), model)
    write_tensors(tmp_path / "x.safetensors", kohya.write(updates, arch), {})
    results = contract.check(tmp_path / "x.safetensors", updates, arch.name)
    assert {result.program for result in results if result.loads} == programs
    assert max(result.error for result in results if result.loads) < 1e-5  # fp32


@pytest.mark.parametrize("family", ["zimage", "qwen_image"])
def test_the_form_of_musubi_tuner_does_there_and_in_diffusers_what_it_does_here(family: str, tmp_path: Path) -> None:
    updates = trained(family)
    write_tensors(tmp_path / "x.safetensors", kohya.write(updates, names.architecture(family)), {})
    loads = {result.program for result in contract.check(tmp_path / "x.safetensors", updates, family) if result.loads}
    assert loads == {"diffusers", "musubi-tuner"} | ({"ComfyUI"} if family == "qwen_image" else set())


@pytest.mark.parametrize("family", ["pixart", "zimage"])
def test_fused_layers_do_in_comfyui_what_their_parts_do(family: str, tmp_path: Path) -> None:
    arch = replace(names.architecture(family), original=True, kohya={"denoiser": "lora_unet"})
    updates = attention_and_mlp(trained(family), family)
    updates = {layer: update for layer, update in updates.items() if names.to_kohya(arch, layer)}
    write_tensors(tmp_path / "x.safetensors", kohya.write(updates, arch), {})
    [result] = [r for r in contract.check(tmp_path / "x.safetensors", updates, family) if r.program == "ComfyUI"]
    assert result.loads, result
    assert result.error < 1e-5  # fp32


def test_of_a_language_model_no_program_is_known_to_read_a_lora(tmp_path: Path) -> None:
    updates = {"text_encoders.qwen.layers.0.mlp.up_proj": Update(torch.ones(2, 6), torch.ones(6, 2))}
    write_tensors(tmp_path / "x.safetensors", *diffusers.write(updates, names.architecture("zimage")))
    assert "loads in: no other program" in contract.lines(contract.check(tmp_path / "x.safetensors", updates, "zimage"))


def test_what_goes_wrong_elsewhere_is_said(tmp_path: Path) -> None:
    path, arch = tmp_path / "x.safetensors", names.architecture("sdxl")
    updates = attention_and_mlp(trained("sdxl"), "sdxl")
    write_tensors(path, *diffusers.write(updates, arch))
    text = contract.lines(contract.check(path, updates, "sdxl"))
    assert text.startswith("loads in: diffusers (max error")
    assert "not in ComfyUI: " in text
    assert " layers are not read: denoiser." in text
    assert "not in kohya: it reads no such names" in text

    tensors = {key: t for key, t in kohya.write(updates, arch).items() if not key.endswith(".alpha")}
    write_tensors(path, tensors, {})
    text = contract.lines(contract.check(path, updates, "sdxl"))
    assert text.startswith("loads in: no other program")
    assert "not in ComfyUI: its effect differs by 100%" in text

    write_tensors(path, kohya.write(updates, arch), {})
    text = contract.lines(contract.check(path, updates, "sdxl", branch="negative"))
    assert "not in kohya: it would work on every row there, and was trained on the negative branch" in text


def test_a_t5_is_lost_in_diffusers(tmp_path: Path) -> None:
    path, arch = tmp_path / "x.safetensors", names.architecture("flux")
    updates = {k: u for k, u in trained("flux").items() if "blocks." in k or ".t5." in k}
    write_tensors(path, kohya.write(updates, arch), {})
    assert "not in diffusers: " in contract.lines(contract.check(path, updates, "flux"))
