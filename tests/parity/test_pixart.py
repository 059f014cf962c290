"""PixArt-Sigma against diffusers' pipeline, on random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided
from hcpdiff.models import PixArtSigma
from tests.models.tiny_pixart import tiny_pixart

pytest.importorskip("diffusers")

PROMPTS, NEGATIVES = ["A red Star ", "blue"], ["dull", "a cat and more"]
TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order
SAMPLED = 1e-4  # the same, of six steps


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipeline, folder = tiny_pixart(), tmp_path_factory.mktemp("pixart")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@torch.no_grad()
def test_conditioning_equals_the_stock_pipeline(both: tuple[Any, Path]) -> None:
    pipeline, folder = both
    tokens, mask, negative, negative_mask = pipeline.encode_prompt(
        PROMPTS, negative_prompt=NEGATIVES, device="cpu", max_sequence_length=9
    )
    ours = PixArtSigma.from_pretrained(folder, t5_tokens=9).encode_prompt([*NEGATIVES, *PROMPTS])
    assert ours.mask is not None
    assert torch.equal(ours.mask, torch.cat([negative_mask, mask]).float())
    assert 0 < ours.mask.mean() < 1
    assert difference(ours.tokens, torch.cat([negative, tokens])) <= TOLERANCE


@torch.no_grad()
def test_sampling_with_guidance_equals_the_stock_pipeline(both: tuple[Any, Path]) -> None:
    pipeline, folder = both
    family = PixArtSigma.from_pretrained(folder, t5_tokens=9)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    settings = {
        "height": 16,
        "width": 24,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "max_sequence_length": 9,
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    stock = {
        kind: pipeline(PROMPTS, negative_prompt=NEGATIVES, latents=noise, output_type=kind, **settings).images
        for kind in ("latent", "pt")
    }
    negative, positive = family.encode_prompt([*NEGATIVES, *PROMPTS]).chunk(2)

    def predict(latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timestep.expand(len(latents))
        noise = guided(family.denoise, latents, timesteps, negative, positive, 3.0)
        return family.process.split(noise, latents, timesteps)

    latents = samplers.euler(predict, noise, family.spacing(6, family.process, (16, 24)), family.process)
    assert stock["pt"].std() > 0.05, "a picture that could differ"
    assert difference(latents, stock["latent"]) <= SAMPLED
    assert difference((family.decode(latents) + 1) / 2, stock["pt"]) <= SAMPLED


@torch.no_grad()
def test_the_stock_pipeline_reads_what_we_write_and_draws_the_same(both: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = both
    PixArtSigma.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    again = type(pipeline).from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "max_sequence_length": 9,
        "use_resolution_binning": False,
        "output_type": "pt",
    }
    pictures = [p("a star", generator=torch.Generator().manual_seed(0), **settings).images for p in (pipeline, again)]
    assert difference(*pictures) <= TOLERANCE
    assert again.scheduler.config.beta_schedule == "linear"


@torch.no_grad()
def test_a_folder_whose_config_names_the_class_of_old_is_read_alike(both: tuple[Any, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(both[1], tmp_path / "old")
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    config |= {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "use_linear_projection": False}
    file.write_text(json.dumps(config))
    families = [PixArtSigma.from_pretrained(path, t5_tokens=9) for path in (both[1], folder)]
    conditioning, noisy = families[0].encode_prompt(["a"]), torch.randn(1, 4, 8, 8)
    first, second = (family.denoise(noisy, torch.tensor([500.0]), conditioning) for family in families)
    assert torch.equal(first, second)
    assert PixArtSigma.latent_spec(folder) == families[0].latent


@torch.no_grad()
def test_signs_count_only_if_told_and_all_letters_are_small(both: tuple[Any, Path]) -> None:
    plain = PixArtSigma.from_pretrained(both[1], t5_tokens=20)
    webui = PixArtSigma.from_pretrained(both[1], t5_tokens=20, emphasis="webui")
    wanted = plain.encode_prompt(["red a star"])
    same = webui.encode_prompt(["Red A BREAK star"])
    assert torch.equal(same.tokens, wanted.tokens)
    assert torch.equal(same.mask, wanted.mask)
    assert difference(webui.encode_prompt(["(red:1.5) a star"]).tokens, wanted.tokens) > 0.01
    counts = [
        f.token_counts(["Red BREAK a"], both[1], emphasis=e)["t5"][0] for f, e in ((plain, "none"), (webui, "webui"))
    ]
    assert counts == [[11], [6]]
