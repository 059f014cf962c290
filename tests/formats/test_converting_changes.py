from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hcpdiff.formats import contract, convert, detect, diffusers, fused_changes, kohya, names, nearest, reading
from hcpdiff.formats.changes import Changes
from hcpdiff.formats.dora import DoRA
from hcpdiff.formats.lora_files import Update, write_tensors
from hcpdiff.formats.lycoris import IA3, Full, LoHa, LoKr

Q = "denoiser.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
CONV, NORM = "denoiser.down_blocks.1.resnets.0.conv1", "denoiser.down_blocks.1.resnets.0.norm1"
QKV = [f"denoiser.transformer_blocks.0.attn.to_{name}" for name in "qkv"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def loha(rows: int = 8, columns: int = 8) -> LoHa:
    a, b = (rows, 2), (2, columns)
    return LoHa(random(*a), random(*b), random(*a, seed=1), random(*b, seed=1), 1.0)


def lokr() -> LoKr:
    return LoKr(w1=random(4, 2), w2_a=random(6, 2), w2_b=random(2, 4), alpha=3.0)


def written(path: Path, updates: Changes, family: str) -> Path:
    write_tensors(path, kohya.write(updates, names.architecture(family)), {})
    return path


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_kohyas_names_and_those_of_lycoris_hold_the_same_tensors(family: str, tmp_path: Path) -> None:
    words = f"text_encoders.clip{'_l' if family == 'sdxl' else ''}.text_model.encoder.layers.0.mlp.fc1"
    updates: Changes = {
        Q: lokr(),
        CONV: Full(random(8, 8, 3, 3), random(8)),
        NORM: Full(random(8), random(8)),
        words: DoRA(Update(random(2, 8), random(8, 2), 3.0), random(8, 1)),
    }
    first = written(tmp_path / "a.safetensors", updates, family)
    second = convert.convert(first, "lycoris", family=family)
    keys = list(load_file(second))
    assert "lycoris_down_blocks_1_resnets_0_norm1.w_norm" in keys
    third = convert.convert(second, "kohya", family=family)
    before, after = load_file(first), load_file(third)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    if family == "sdxl":
        assert "lora_unet_input_blocks_4_0_in_layers_0.w_norm" in before


def test_parts_of_a_fused_lokr_become_the_difference_itself_where_they_stand_alone(tmp_path: Path) -> None:
    arch = names.architecture("sd3")
    tensors = kohya.module_tensors("lora_unet_joint_blocks_0_x_block_attn_qkv", lokr())
    write_tensors(tmp_path / "a.safetensors", tensors, {})
    before = reading.read(tmp_path / "a.safetensors", "sd3").updates
    again = load_file(convert.convert(tmp_path / "a.safetensors", "comfyui", family="sd3"))
    assert all(torch.equal(tensor, again[key]) for key, tensor in tensors.items()), "it reads the fused layer too"
    assert list(before) == QKV
    after = reading.read(convert.convert(tmp_path / "a.safetensors", "lycoris", family="sd3"), "sd3").updates
    for layer in QKV:
        assert isinstance(after[layer], Full)
        assert torch.equal(fused_changes.alone(before[layer]).delta(), after[layer].delta())  # type: ignore[union-attr]
    assert not kohya.fits_lycoris(before, arch)
    with pytest.raises(ValueError, match="lycoris: 3 of 3 layers have no place"):
        kohya.write_lycoris(before, arch)
    with pytest.raises(ValueError, match="kohya: 1 of 1 layers have no place"):
        kohya.write({QKV[0]: before[QKV[0]]}, arch)


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_other_forms_become_the_nearest_lora_and_the_loss_is_said(
    to: convert.Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updates: Changes = {
        Q: loha(),
        CONV: LoKr(w1=random(2, 2), w2=random(4, 4, 3, 3)),
        Q.replace("to_q", "to_k"): Update(random(2, 8), random(8, 2), 1.0),
        Q.replace("to_q", "to_v"): Full(random(8, 1) @ random(1, 8)),
    }
    path = written(tmp_path / "a.safetensors", updates, "sd")
    for rank, exact in ((8, True), (2, False)):
        found = reading.read(convert.convert(path, to, tmp_path / f"{to}{rank}", "sd", rank=rank), "sd").updates
        assert found.keys() == updates.keys()
        for layer, update in updates.items():
            ours, weight = found[layer], torch.zeros(8, 8, 3, 3) if layer == CONV else torch.zeros(8, 8)
            assert isinstance(ours, Update)
            best = torch.linalg.svdvals(update.applied(weight).flatten(1))[rank:].norm()
            assert torch.allclose((ours.applied(weight) - update.applied(weight)).norm(), best, atol=1e-4)
            assert not exact or best < 1e-4
    assert "3 of 4 layers became LoRAs of rank 2, which lack" in caplog.text
    assert f"% of the change at {CONV}" in caplog.text or f"% of the change at {Q}" in caplog.text


def test_what_no_lora_can_be_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {NORM: Full(random(8)), Q: IA3(random(8)), CONV: loha()}, "sd")
    with pytest.raises(ValueError, match="2 of 3 layers have changes that no LoRA can be") as error:
        convert.convert(path, "diffusers", family="sd")
    assert NORM in str(error.value)
    assert Q in str(error.value)
    plain = written(tmp_path / "b.safetensors", {Q: Update(random(2, 8), random(8, 2))}, "sd")
    with pytest.raises(ValueError, match="is written as diffusers without another rank; remove it"):
        convert.convert(plain, "diffusers", family="sd", rank=4)
    with pytest.raises(ValueError, match="rank: 0 is no rank"):
        nearest.loras({Q: loha()}, 0, "sd")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_dora_of_columns_and_a_mixture_have_no_place_with_diffusers() -> None:
    update = Update(random(2, 8), random(8, 2))
    with pytest.raises(ValueError, match="1 of 1 layers have changes that no LoRA there can hold"):
        diffusers.write({Q: DoRA(update, random(1, 8))}, names.architecture("sd"))
    with pytest.raises(ValueError, match="beside a DoRA, 1 layers have a plain LoRA: unet"):
        diffusers.write({Q: update, CONV: DoRA(update, random(8, 1))}, names.architecture("sd"))


@pytest.mark.parametrize("width", [768, 2048])
@pytest.mark.parametrize("kind", ["loha", "lokr", "full", "dora"])
def test_the_family_is_told_by_the_width_whatever_the_form(width: int, kind: str) -> None:
    change = {
        "loha": LoHa(*(torch.zeros(s) for s in ((4, 2), (2, width), (4, 2), (2, width)))),
        "lokr": LoKr(w1=torch.zeros(2, 16), w2_a=torch.zeros(2, 1), w2_b=torch.zeros(1, width // 16)),
        "full": Full(torch.zeros(4, width)),
        "dora": DoRA(Update(torch.zeros(2, width), torch.zeros(4, 2)), torch.zeros(4, 1)),
    }[kind]
    tensors = kohya.module_tensors(f"lora_unet_{Q[9:].replace('.', '_')}".replace("to_q", "to_k"), change)
    assert detect.form(tensors, "x") == "kohya"
    assert detect.family(tensors) == {768: "sd", 2048: "sdxl"}[width]


def dora(on_input: bool = False) -> tuple[DoRA, Tensor]:
    """One that has learned a little, and the weight that it is for."""
    weight = random(12, 8)
    update = Update(0.3 * random(2, 8), 0.3 * random(12, 2), 1.0)
    magnitude = weight.norm(dim=0 if on_input else 1, keepdim=True) * 1.05
    return DoRA(update, magnitude), weight


@pytest.mark.parametrize(
    ("on_input", "loads", "reasons"),
    [
        (False, "LyCORIS", {"ComfyUI": "length that it has without", "kohya": "magnitudes", "diffusers": "magnitudes"}),
        (True, "ComfyUI", {"LyCORIS": "reads no such names", "kohya": "magnitudes", "diffusers": "magnitudes"}),
    ],
)
def test_the_log_says_how_much_a_dora_differs_elsewhere(
    on_input: bool, loads: str, reasons: dict[str, str], tmp_path: Path
) -> None:
    change, weight = dora(on_input)
    path = written(tmp_path / "x.safetensors", {Q: change}, "sd")
    results = {r.program: r for r in contract.check(path, {Q: change}, "sd", weights={Q: weight})}
    assert [name for name, result in results.items() if result.loads] == [loads]
    assert results[loads].error < 1e-5
    for program, reason in reasons.items():
        assert reason in str(results[program].problem)
    if not on_input:
        update = change.of
        theirs = update.applied(weight) * (change.magnitude / weight.norm(dim=1, keepdim=True))
        ours = change.applied(weight)
        error = (theirs - ours).abs().max() / (ours - weight).abs().max()
        assert results["ComfyUI"].error == pytest.approx(float(error), rel=1e-4)
        assert f"differs by {float(error):.0%}" in contract.lines(list(results.values()))


@pytest.mark.parametrize("change", [loha(12, 8), lokr().rows(0, 24), LoKr(w1=random(3, 4), w2=random(4, 2))])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_loha_and_lokr_load_in_comfyui_and_lycoris(change: LoHa | LoKr, name: str, tmp_path: Path) -> None:
    arch = names.architecture(name)
    layer = Q if name == "sd" else QKV[0]
    if isinstance(change, LoKr):
        change = LoKr(change.w1, w2=change.w2, w2_a=change.w2_a, w2_b=change.w2_b, alpha=change.alpha)
    write = kohya.write if name == "sd" else kohya.write_lycoris
    write_tensors(tmp_path / "x.safetensors", write({layer: change}, arch), {})
    weight = torch.zeros_like(change.delta())
    results = contract.check(tmp_path / "x.safetensors", {layer: change}, name, weights={layer: weight})
    assert {r.program: r.problem for r in results} == {
        "diffusers": "it reads no such names",
        "ComfyUI": None,
        "kohya": "it reads no such names",
        "LyCORIS": None,
    }
    assert max(result.error for result in results) < 1e-5
