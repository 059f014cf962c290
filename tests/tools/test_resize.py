"""LoRAs of smaller ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hcpdiff.formats import convert, detect, reading
from hcpdiff.tools.low_rank import Target, factorise, refactorise
from hcpdiff.tools.resize import resize
from tests.tools.tiny_models import lora


@pytest.mark.parametrize("name", ["sd1", "sd3-medium"])
def test_it_is_the_nearest_of_that_rank(name: str, tmp_path: Path) -> None:
    path = lora(name, tmp_path / "style.safetensors", rank=4)
    done = resize(path, tmp_path / "small.safetensors", rank=2)
    before = reading.read(path)
    after = reading.read(done.path, before.family)
    assert after.form == before.form
    missing = total = 0.0
    for layer, update in before.updates.items():
        whole, small = update.delta().flatten(1), after.updates[layer].delta().flatten(1)
        u, s, vh = torch.linalg.svd(whole)
        best = u[:, :2] * s[:2] @ vh[:2]
        torch.testing.assert_close(small, best, rtol=1e-3, atol=1e-4)
        assert after.updates[layer].rank == done.ranks[layer] == 2
        assert after.updates[layer].scale == pytest.approx(update.scale)
        missing, total = missing + float((whole - best).square().sum()), total + float(whole.square().sum())
    assert done.error == pytest.approx((missing / total) ** 0.5, rel=1e-3)


def test_the_rank_follows_the_share_that_is_to_be_kept(tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors", rank=4)
    done = resize(path, tmp_path / "small.safetensors", energy=0.7)
    before, after = reading.read(path), reading.read(done.path, "sd")
    assert len(set(done.ranks.values())) > 1
    for layer, update in after.updates.items():
        squares = torch.linalg.svdvals(before.updates[layer].delta().flatten(1)).square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[update.rank - 1] >= 0.7 - 1e-4
        assert update.rank == 1 or shares[update.rank - 2] < 0.7 + 1e-4


def test_the_form_and_the_header_stay(tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors", rank=4)
    header = {"format": "pt", "ss_network_dim": "4", "ss_network_alpha": "2", "ss_tag_frequency": "{}"}
    save_file(load_file(path), path, header | {"sshs_model_hash": "12"})
    for form in ("kohya", "diffusers", "peft"):
        one = convert.convert(path, form, tmp_path / (form if form == "peft" else f"{form}.safetensors"), "sd")
        out = tmp_path / (f"{form}-small" if form == "peft" else f"{form}-small.safetensors")
        small = resize(one, out, rank=2, family="sd").path
        again = reading.read(small, "sd")
        assert again.form == form
        assert {update.rank for update in again.updates.values()} == {2}
    with safe_open(tmp_path / "kohya-small.safetensors", "pt") as file:
        found, expected = file.metadata(), header | {"ss_network_dim": "2", "ss_network_alpha": "1"}
    assert {key: found[key] for key in expected} == expected
    assert found.get("sshs_model_hash") != "12"
    assert detect.form(load_file(tmp_path / "kohya-small.safetensors"), "") == "kohya"


def test_layers_of_smaller_ranks_stay_as_they_are(tmp_path: Path) -> None:
    path = lora("sd1", tmp_path / "style.safetensors", rank=4)
    state = load_file(path)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    state[f"{name}.lora_down.weight"] = state[f"{name}.lora_down.weight"][:1].clone()
    state[f"{name}.lora_up.weight"] = state[f"{name}.lora_up.weight"][:, :1].clone()
    save_file(state, path)
    done = resize(path, tmp_path / "small.safetensors", rank=2, family="sd")
    assert sorted(done.ranks.values())[:2] == [1, 2]
    before, after = (
        reading.read(p, "sd").updates["denoiser.mid_block.attentions.0.proj_in"] for p in (path, done.path)
    )
    torch.testing.assert_close(before.delta(), after.delta())


def test_what_cannot_become_smaller_is_told(tmp_path: Path) -> None:
    path, out = lora("sd1", tmp_path / "style.safetensors", rank=4), tmp_path / "small.safetensors"
    for options, message in [
        ({"rank": 5}, "rank: 5 is not below 4, the largest rank in"),
        ({"rank": 4}, "rank: 4 is not below 4"),
        ({"energy": 1.0}, "needs every rank that it has"),
        ({}, "rank: give either a rank or an energy"),
        ({"rank": 2, "family": "sdx"}, "'sdx' is not known"),
    ]:
        with pytest.raises(ValueError, match=message):
            resize(path, out, **options)
    with pytest.raises(ValueError, match="is what is read; name another"):
        resize(path, path, rank=2)
    out.touch()
    with pytest.raises(ValueError, match="is not overwritten"):
        resize(path, out, rank=2)
    with pytest.raises(FileNotFoundError, match="no such LoRA file"):
        resize(tmp_path / "nowhere.safetensors", tmp_path / "x.safetensors", rank=2)


def test_random_projections_are_as_good_as_the_exact_decomposition() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(200, 300) * torch.logspace(0, -3, 300)
    singular = torch.linalg.svdvals(matrix).square()
    factors = factorise(matrix, Target(rank=8))
    assert factors.down.shape == (8, 300)
    assert factors.kept / factors.total == pytest.approx(float(singular[:8].sum() / singular.sum()), rel=1e-4)
    error = float((matrix - factors.up @ factors.down).square().sum())
    assert error == pytest.approx(float(singular[8:].sum()), rel=1e-3)
    again = factorise(matrix, Target(rank=8))
    assert torch.equal(again.up, factors.up)
    few = factorise(matrix, Target(energy=0.9))
    shares = singular.cumsum(0) / singular.sum()
    assert len(few.down) == int((shares < 0.9).sum()) + 1


def test_factors_are_made_smaller_without_their_product() -> None:
    torch.manual_seed(0)
    up, down = torch.randn(50, 6), torch.randn(6, 40)
    factors = refactorise(up, down, Target(rank=3))
    u, s, vh = torch.linalg.svd(up @ down)
    torch.testing.assert_close(factors.up @ factors.down, u[:, :3] * s[:3] @ vh[:3], rtol=1e-4, atol=1e-4)
    whole = refactorise(torch.randn(4, 6), down, Target(rank=8))  # more ranks than rows
    assert whole.up.shape == (4, 4)
