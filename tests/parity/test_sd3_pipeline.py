"""The SD3 family against diffusers' StableDiffusion3Pipeline, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided
from hcpdiff.models.sd3.family import SD3
from tests.models.tiny import tiny_pipeline

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red star", "blue"]
TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order


@pytest.fixture(scope="module", params=[False, True], ids=["without T5", "with T5"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipeline = tiny_pipeline(t5=request.param)
    folder = tmp_path_factory.mktemp("sd3")
    pipeline.save_pretrained(folder)
    return pipeline, folder


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def test_conditioning_equals_the_stock_pipeline(both: tuple[Any, Path]) -> None:
    pipeline, folder = both
    tokens, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS, None, None, max_sequence_length=7)
    family = SD3.from_pretrained(folder, t5_tokens=7, compact_t5=False)
    ours = family.encode_prompt([*PROMPTS, "", ""])
    assert ours.mask is None
    assert difference(ours.tokens, torch.cat([tokens, negative])) <= TOLERANCE
    assert difference(ours.pooled, torch.cat([pooled, negative_pooled])) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("compact", [True, False])
def test_sampling_with_guidance_equals_the_stock_pipeline(both: tuple[Any, Path], compact: bool) -> None:
    pipeline, folder = both
    family = SD3.from_pretrained(folder, t5_tokens=7, compact_t5=compact)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    settings = {"height": 16, "width": 24, "num_inference_steps": 4, "guidance_scale": 4.0, "max_sequence_length": 7}
    stock = pipeline(PROMPTS, latents=noise, output_type="pt", **settings).images

    negative, positive = family.encode_prompt(["", "", *PROMPTS]).chunk(2)

    def predict(latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timestep.expand(len(latents))
        flow = guided(family.denoise, latents, timesteps, negative, positive, 4.0)
        return family.process.split(flow, latents, timesteps)

    latents = samplers.euler(predict, noise, family.spacing(4, family.process, (16, 24)), family.process)
    ours = (family.decode(latents) + 1) / 2
    assert stock.std() > 0.05, "a picture that could differ"
    assert difference(ours, stock) <= 1e-4  # rounding of four steps


@torch.no_grad()
@pytest.mark.parametrize("shift", [0.3, None])
def test_latents_equal_the_vae_with_scale_and_shift(shift: float | None, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(shift_factor=shift)
    pipeline.save_pretrained(tmp_path)
    family = SD3.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = (pipeline.vae.encode(images).latent_dist.mode() - (shift or 0)) * 1.5
    assert difference(family.encode_image(images), wanted) <= TOLERANCE
    assert (
        difference(family.decode(wanted), pipeline.vae.decode(wanted / 1.5 + (shift or 0)).sample.clamp(-1, 1))
        <= TOLERANCE
    )

    sample = pipeline.vae.encode(images).latent_dist.sample(torch.Generator().manual_seed(5))
    ours = family.encode_image(images, generator=torch.Generator().manual_seed(5))
    assert difference(ours, (sample - (shift or 0)) * 1.5) <= TOLERANCE


@torch.no_grad()
def test_the_stock_pipeline_reads_what_we_write_and_draws_the_same(both: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = both
    SD3.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    reloaded = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "saved")
    reloaded.set_progress_bar_config(disable=True)
    settings = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 7, "output_type": "pt"}
    pictures = [
        p("a star", generator=torch.Generator().manual_seed(0), **settings).images for p in (pipeline, reloaded)
    ]
    assert difference(*pictures) <= TOLERANCE  # diffusers maps weights from the file, at other addresses
    assert reloaded.scheduler.config.shift == pipeline.scheduler.config.shift
