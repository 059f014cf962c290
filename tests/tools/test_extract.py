"""The difference of two models as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hcpdiff.formats import contract, reading
from hcpdiff.formats.lora_files import Update
from hcpdiff.formats.names import canonical
from hcpdiff.plugins.weights import attach_file
from hcpdiff.tools.extract import extract
from hcpdiff.tools.merge import merge
from hcpdiff.tools.settings import MergeAdapter, MergeSettings
from tests.tools.tiny_models import FAMILIES, family, lora, model, other


def merged(name: str, adapter: Path, out: Path, **rest: Any) -> Path:
    base = model(name) / ("file.safetensors" if out.suffix else "folder")
    merge(MergeSettings(base=str(base), out=str(out), adapters={"style": MergeAdapter(path=str(adapter))}, **rest))
    return out


def updates(path: Path, name: str) -> dict[str, Update]:
    kind = {"sd1": "sd", "sd3-medium": "sd3", "flux-dev": "flux"}.get(name, name)
    return reading.read(path, kind).updates


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_lora_did_is_found_again(name: str, tmp_path: Path) -> None:
    adapter = lora(name, tmp_path / "style.safetensors", rank=3)
    tuned = merged(name, adapter, tmp_path / "tuned")
    done = extract(model(name) / "file.safetensors", tuned, tmp_path / "again.safetensors", rank=3)
    wanted, found = updates(adapter, name), updates(done.path, name)
    assert found.keys() == wanted.keys()
    for layer, update in wanted.items():
        delta = update.delta()
        assert (found[layer].delta() - delta).norm() <= 1e-3 * delta.norm()  # float32's rounding of the sum
    assert done.energy > 1 - 1e-6
    assert done.left_out == []


@pytest.mark.parametrize("name", FAMILIES)
def test_it_loads_here_and_in_other_programs(name: str, tmp_path: Path) -> None:
    on = ["denoiser", "text_encoders.clip" if name == "sd1" else "text_encoders.clip_l"]  # T5 is read by few
    tuned = merged(name, lora(name, tmp_path / "style.safetensors", on=on), tmp_path / "tuned")
    done = extract(model(name) / "folder", tuned, tmp_path / "again.safetensors", rank=3)
    group = attach_file(family(name, model(name) / "folder"), done.path)
    assert {canonical(layer) for layer in group.plugins("plugin")} == set(done.ranks)
    results = contract.check(done.path, updates(done.path, name), reading.read(done.path).family)
    assert {result.program for result in results if result.loads} >= {"diffusers", "ComfyUI"}
    with safe_open(done.path, "pt") as file:
        header = file.metadata()
    assert header["ss_network_dim"] == "3"
    assert header["modelspec.title"] == "again"


def test_the_rank_follows_the_share_that_is_to_be_kept(tmp_path: Path) -> None:
    tuned = other("sd1", tmp_path / "tuned")
    done = extract(model("sd1") / "folder", tuned, tmp_path / "a.safetensors", energy=0.8)
    before, after = (family("sd1", path).state_dict() for path in (model("sd1") / "folder", tuned))
    found = updates(done.path, "sd1")
    for layer, rank in list(done.ranks.items())[::10]:
        key = f"{layer}.weight" if f"{layer}.weight" in before else f"{layer}.weight".replace("text_model.", "")
        squares = torch.linalg.svdvals((after[key] - before[key]).flatten(1)).square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[rank - 1] >= 0.8 - 1e-4
        assert rank == 1 or shares[rank - 2] < 0.8 + 1e-4
        assert found[layer].rank == rank
        assert done.kept[layer] == pytest.approx(float(shares[rank - 1]), abs=1e-4)
    assert 0.8 <= done.energy < 1


def test_what_a_lora_cannot_hold_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned = other("sd1", tmp_path / "tuned")
    done = extract(model("sd1") / "folder", tuned, tmp_path / "a.safetensors", rank=2)
    assert "denoiser.conv_norm_out.weight" in done.left_out
    assert "denoiser.conv_in.bias" in done.left_out
    assert "text_encoders.clip.text_model.embeddings.token_embedding.weight" in done.left_out
    assert any(name.startswith("vae.") for name in done.left_out)
    assert "denoiser.conv_in.weight" not in done.left_out
    (record,) = caplog.records
    assert f"{len(done.left_out)} tensors differ that it cannot hold: " in record.getMessage()


def test_layers_that_did_not_change_are_left_out(tmp_path: Path) -> None:
    def change(live: Any) -> None:
        live.denoiser.conv_in.weight.add_(1.0)
        live.denoiser.conv_out.weight.add_(1.0)

    tuned = other("sd1", tmp_path / "tuned.safetensors", change)
    base = model("sd1") / "folder"
    assert list(extract(base, tuned, tmp_path / "a.safetensors", rank=1).ranks) == [
        "denoiser.conv_in",
        "denoiser.conv_out",
    ]
    layers = ["re:.*conv_in"]
    assert list(extract(base, tuned, tmp_path / "b.safetensors", rank=1, layers=layers).ranks) == ["denoiser.conv_in"]


def test_rounding_to_another_dtype_is_no_change(tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors", on="denoiser")
    tuned = merged("sd1", path, tmp_path / "tuned", dtype="float16")
    done = extract(model("sd1") / "folder", tuned, tmp_path / "a.safetensors", rank=3)
    assert all(layer.startswith("denoiser.") for layer in done.ranks)
    assert {tensor.dtype for key, tensor in load_file(done.path).items() if "lora" in key and "alpha" not in key} == {
        torch.float16
    }


def test_what_cannot_be_extracted_is_told(tmp_path: Path) -> None:
    base, out = model("sd1") / "folder", tmp_path / "a.safetensors"

    def norms(live: Any) -> None:
        live.denoiser.conv_norm_out.weight.add_(1.0)

    only_norms = other("sd1", tmp_path / "norms", norms)
    for arguments, options, message in [
        ((base, base, out), {"rank": 1}, "in nothing of"),
        ((base, model("sd1") / "file.safetensors", out), {"rank": 1}, "in nothing of"),
        ((base, only_norms, out), {"rank": 1}, "in nothing but 1 tensors that no LoRA holds"),
        ((base, model("sdxl") / "folder", out), {"rank": 1}, "a model of sdxl, and the base is one of sd"),
        ((base, only_norms, out), {}, "rank: give either"),
        ((base, only_norms, out), {"rank": 1, "energy": 0.5}, "rank: give either"),
        ((base, only_norms, out), {"rank": 0}, "rank: 0 is no rank"),
        ((base, only_norms, out), {"energy": 1.5}, "energy: 1.5 is no share"),
        ((base, only_norms, out), {"rank": 1, "layers": ["re:.*atn"]}, r"layers\[0\]: 're:.\*atn' matches none"),
        ((base, only_norms, only_norms), {"rank": 1}, "is what is read"),
    ]:
        with pytest.raises(ValueError, match=message):
            extract(*arguments, **options)
    assert not out.exists()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract(base, tmp_path / "nowhere", out, rank=1)
