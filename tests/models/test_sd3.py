"""The SD3 family: reading, writing and settings (for equality with diffusers see parity/test_sd3_pipeline.py)."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hcpdiff.models import SD3, MMDiT
from hcpdiff.models.text import t5
from tests.models.tiny import tiny_pipeline

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a T5."""
    path = tmp_path_factory.mktemp("sd3")
    tiny_pipeline(t5=True).save_pretrained(path)
    return path


def test_each_part_has_its_dtype(folder: Path) -> None:
    family = SD3.from_pretrained(folder, dtype="float16", text_dtype="bf16")
    dtypes = {name: {p.dtype for p in part.parameters()} for name, part in family.named_children()}
    assert dtypes == {"denoiser": {torch.float16}, "text_encoders": {torch.bfloat16}, "vae": {torch.float32}}
    with pytest.raises(ValueError, match="'half8' is no floating dtype; use float32"):
        SD3.from_pretrained(folder, dtype="half8")
    with pytest.raises(ValueError, match="use float32, bfloat16 or float16"):
        SD3.from_pretrained(folder, vae_dtype="int8")


@torch.no_grad()
def test_without_its_t5_a_model_is_saved_with_a_silent_one_and_means_the_same(folder: Path, tmp_path: Path) -> None:
    family = SD3.from_pretrained(folder, t5=False, t5_tokens=9)
    assert list(family.text_encoders) == ["clip_l", "clip_g"]
    conditioning = family.encode_prompt(["a star"])
    assert conditioning.mask.tolist() == [[1.0] * 12 + [9.0]]
    family.save_pretrained(tmp_path / "saved")
    assert t5.is_silent(tmp_path / "saved" / "text_encoder_3")
    assert not t5.is_silent(folder / "text_encoder_3")
    again = SD3.from_pretrained(tmp_path / "saved", t5_tokens=9)
    assert list(again.text_encoders) == ["clip_l", "clip_g"], "a silent T5 is not run"
    assert torch.equal(again.encode_prompt(["a star"]).tokens, conditioning.tokens)


@torch.no_grad()
def test_compact_and_full_zero_tokens_give_one_prediction(folder: Path) -> None:
    compact = SD3.from_pretrained(folder, t5=False, t5_tokens=40)
    full = SD3.from_pretrained(folder, t5=False, t5_tokens=40, compact_t5=False)
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5.0, 800.0])
    ours, wanted = (f.denoise(noisy, timesteps, f.encode_prompt(["a", "b"])) for f in (compact, full))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)  # fp32: a sum of 40 against one product


def test_gradients_reach_the_text_encoders_and_no_grad_is_the_callers(folder: Path) -> None:
    family = SD3.from_pretrained(folder, t5_tokens=7).train()
    assert not any(module.training for module in family.text_encoders.modules()), "no dropout in encoders"
    assert family.denoiser.training
    conditioning = family.encode_prompt(["a red star"])
    (conditioning.tokens.square().sum() + conditioning.pooled.square().sum()).backward()
    idle = {n for n, p in family.text_encoders.named_parameters() if p.grad is None or not p.grad.any()}
    # adding one number to all keys changes no softmax; rounding may leave 0
    assert all(name.endswith("k_proj.bias") for name in idle), idle


@torch.no_grad()
def test_a_cut_prompt_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    family = SD3.from_pretrained(folder, t5=False)
    with caplog.at_level(logging.WARNING, "hcpdiff"):
        family.encode_prompt(["abcdefghij", "short"])
        assert not caplog.records, "ten letters and two ends fit in twelve"
        for _ in range(2):
            family.encode_prompt(["abcdefghijkl", "short"])
    assert len(caplog.records) == 1
    assert "'abcdefghijkl' is longer than 12 tokens" in caplog.text
    assert "does not see: 'kl'" in caplog.text


def test_from_scratch_is_seeded_and_reads_the_rest(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for part in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3"):
        for file in (bare / part).glob("*.safetensors"):
            file.unlink()
    before = torch.random.get_rng_state()
    make = {"from_scratch": ["denoiser", "text_encoders"]}
    one, same, other = (SD3.from_pretrained(bare, seed=seed, **make).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state()), "torch's own generator is left alone"
    trained = SD3.from_pretrained(folder).state_dict()
    assert one.keys() == trained.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in (
        "denoiser.context_embedder.weight",
        "text_encoders.clip_l.text_model.embeddings.token_embedding.weight",
    ):
        assert not torch.equal(one[name], other[name])
        assert not torch.equal(one[name], trained[name])
    assert all(torch.equal(one[name], trained[name]) for name in one if name.startswith("vae."))
    with pytest.raises(ValueError, match="'transformer' is no part of the model; use any of denoiser"):
        SD3.from_pretrained(folder, from_scratch=["transformer"])  # type: ignore[list-item]


def test_from_scratch_keeps_positions_that_the_folder_has(folder: Path, tmp_path: Path) -> None:
    denoiser = MMDiT.from_pretrained(folder / "transformer")
    denoiser.pos_embed.pos_embed.mul_(2)
    shutil.copytree(folder, tmp_path / "own")
    denoiser.save_pretrained(tmp_path / "own" / "transformer")
    family = SD3.from_pretrained(tmp_path / "own", from_scratch=["denoiser"])
    assert torch.equal(family.denoiser.pos_embed.pos_embed, denoiser.pos_embed.pos_embed)


def layers(module: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(layer).__name__) for name, layer in module.named_modules()]


def test_skeletons_have_the_layers_of_the_model_and_no_weights(folder: Path) -> None:
    family = SD3.from_pretrained(folder)
    for part in ("denoiser", "vae", "text_encoders", "text_encoders.clip_g", "text_encoders.t5"):
        skeleton, wanted = SD3.skeleton(part, path=str(folder)), family.get_submodule(part)
        assert layers(skeleton) == layers(wanted)
        assert {n: p.shape for n, p in skeleton.named_parameters()} == {
            n: p.shape for n, p in wanted.named_parameters()
        }
        assert all(p.is_meta for p in skeleton.parameters())
    with pytest.raises(ValueError, match=r"'text_encoders.t5' is no part of this model; its parts are denoiser, vae"):
        SD3.skeleton("text_encoders.t5", path=folder, t5=False)
    with pytest.raises(TypeError, match="t6"):
        SD3.skeleton("denoiser", path=folder, t6=False)


def test_skeletons_of_denoiser_and_clip_import_neither_transformers_nor_diffusers(folder: Path) -> None:
    code = f"""
import sys
from hcpdiff.models import SD3
assert SD3.skeleton("denoiser", path={str(folder)!r}).transformer_blocks[0].attn.to_q.weight.is_meta
assert SD3.skeleton("text_encoders.clip_l", path={str(folder)!r}).text_projection.weight.is_meta
print([name for name in ("transformers", "diffusers", "peft", "accelerate") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_saving_over_the_model_that_is_in_use_is_safe(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("kept")
    family = SD3.from_pretrained(tmp_path / "model")
    family.save_pretrained(tmp_path / "model")
    again = SD3.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in family.state_dict().items())
    assert (tmp_path / "model" / "notes.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_an_error_that_says_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere; give a model's folder, or owner/name"):
        SD3.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json here; is this the folder of a model"):
        SD3.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        SD3.from_pretrained(folder / "model_index.json")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="this is a FluxPipeline; here a StableDiffusion3Pipeline is needed"):
        SD3.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="t5_tokens: 0 is no number of tokens"):
        SD3.from_pretrained(folder, t5_tokens=0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder at owner/name, and the Hugging Face hub gave no"):
        SD3.from_pretrained("owner/name")


@pytest.mark.parametrize(("damage", "message"), [
    ("config", r"context_embedder\.weight has shape \(32, 28\); by config\.json it is \(32, 20\)"),
    ("layers", r"the weights do not fit MMDiT: .* unknown \(transformer_blocks"),
    ("weights", r"no diffusion_pytorch_model\.safetensors here; is the model downloaded completely"),
    ("encoder", r"text_encoder_2: no model\.safetensors here; is the model downloaded completely"),
])  # fmt: skip
def test_a_damaged_folder_is_an_error_that_names_the_file(
    folder: Path, tmp_path: Path, damage: str, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "transformer" / "config.json"
    values = json.loads(config.read_text())
    if damage == "config":
        config.write_text(json.dumps(values | {"joint_attention_dim": 20}))
    elif damage == "layers":
        config.write_text(json.dumps(values | {"num_layers": 1}))
    elif damage == "weights":
        (config.parent / "diffusion_pytorch_model.safetensors").unlink()
    else:
        (tmp_path / "model" / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SD3.from_pretrained(tmp_path / "model")


def test_checkpointing_and_default_steps_are_reached_through_the_family(folder: Path) -> None:
    family = SD3.from_pretrained(folder)
    family.gradient_checkpointing("mlp")
    assert all(block.checkpoint_mlp for block in family.denoiser.transformer_blocks)
    visited = family.spacing(3, family.process, (16, 16))
    assert visited[0] == 1000
    assert visited[1] > 700, "shift 3 of the folder's scheduler leans towards noise"
    assert isinstance(family.denoiser, nn.Module)
    assert (family.latent.channels, family.latent.downscale, family.latent.multiple_of) == (4, 2, 4)
