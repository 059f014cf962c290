"""Z-Image against diffusers' pipeline, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided
from hcpdiff.models import ZImage
from tests.models.tiny_zimage import tiny_zimage

pytest.importorskip("diffusers")

PROMPTS, NEGATIVES = ["a red star", "blue"], ["dull", "a cat and more"]
TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order
SAMPLED = 1e-4  # the same, of four steps


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipeline, folder = tiny_zimage(), tmp_path_factory.mktemp("zimage")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@torch.no_grad()
def test_conditioning_equals_the_stock_pipeline(both: tuple[Any, Path]) -> None:
    pipeline, folder = both
    wanted, _ = pipeline.encode_prompt([*PROMPTS], max_sequence_length=18)
    ours = ZImage.from_pretrained(folder, text_tokens=18).encode_prompt(PROMPTS)
    assert ours.mask is not None
    assert [int(row.sum()) for row in ours.mask] == [len(row) for row in wanted]
    for tokens, kept, row in zip(ours.tokens, ours.mask.bool(), wanted, strict=True):
        assert difference(tokens[kept], row) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_equals_the_stock_pipeline(both: tuple[Any, Path], guidance: float) -> None:
    pipeline, folder = both
    family = ZImage.from_pretrained(folder, text_tokens=18)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {
        "height": 16,
        "width": 24,
        "num_inference_steps": 4,
        "guidance_scale": guidance - 1,
        "max_sequence_length": 18,
    }
    stock = {
        kind: pipeline([*PROMPTS], negative_prompt=[*NEGATIVES], latents=noise, output_type=kind, **settings).images
        for kind in ("latent", "pt")
    }
    negative, positive = family.encode_prompt([*NEGATIVES, *PROMPTS]).chunk(2)

    def predict(latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timestep.expand(len(latents))
        flow = guided(family.denoise, latents, timesteps, None if guidance == 1 else negative, positive, guidance)
        return family.process.split(flow, latents, timesteps)

    latents = samplers.euler(predict, noise, family.spacing(4, family.process, (16, 24)), family.process)
    assert stock["pt"].std() > 0.05, "a picture that could differ"
    assert difference(latents, stock["latent"]) <= SAMPLED
    assert difference((family.decode(latents) + 1) / 2, stock["pt"]) <= SAMPLED


@torch.no_grad()
def test_the_stock_pipeline_reads_what_we_write_and_draws_the_same(both: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = both
    ZImage.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    again = type(pipeline).from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 2,
        "max_sequence_length": 18,
        "output_type": "pt",
    }
    pictures = [p("a star", generator=torch.Generator().manual_seed(0), **settings).images for p in (pipeline, again)]
    assert difference(*pictures) <= TOLERANCE


def test_tokens_are_counted_with_those_of_the_chat(both: tuple[Any, Path]) -> None:
    counted, limit = ZImage.token_counts(["", "ab"], both[1], text_tokens=30)["qwen"]
    assert limit == 30
    assert counted == [5, 7]  # two ends, u, e, a
    with pytest.raises(ValueError, match="text_tokens: 0 is no number of tokens"):
        ZImage.from_pretrained(both[1], text_tokens=0)
