"""Qwen-Image against diffusers' pipeline, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided
from hcpdiff.models import QwenImage
from tests.models.tiny_qwen import tiny_qwen_image

pytest.importorskip("diffusers")

PROMPTS, NEGATIVES = ["a red star", "blue"], ["dull", "a cat and more"]
TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order
SAMPLED = 1e-4  # the same, of four steps


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipeline, folder = tiny_qwen_image(), tmp_path_factory.mktemp("qwen")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@torch.no_grad()
@pytest.mark.parametrize("tokens", [20, 7])  # more than the longest prompt has, and less
def test_conditioning_equals_the_stock_pipeline(both: tuple[Any, Path], tokens: int) -> None:
    pipeline, folder = both
    wanted, mask = pipeline.encode_prompt([*PROMPTS], max_sequence_length=tokens)
    ours = QwenImage.from_pretrained(folder, text_tokens=tokens).encode_prompt(PROMPTS)
    assert ours.mask is not None
    length = wanted.shape[1]
    assert difference(ours.tokens[:, :length], wanted) <= TOLERANCE
    assert torch.equal(ours.mask[:, :length], torch.ones(2, length) if mask is None else mask.float())
    assert not ours.mask[:, length:].any()
    assert not ours.tokens[:, length:].any()


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_equals_the_stock_pipeline(both: tuple[Any, Path], guidance: float) -> None:
    pipeline, folder = both
    family = QwenImage.from_pretrained(folder, text_tokens=20)
    noise = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"height": 16, "width": 24, "num_inference_steps": 4, "true_cfg_scale": guidance}
    packed = pipeline._pack_latents(noise, *noise.shape)
    stock = {
        kind: pipeline([*PROMPTS], negative_prompt=[*NEGATIVES], latents=packed, output_type=kind, **settings).images
        for kind in ("latent", "pt")
    }
    negative, positive = family.encode_prompt([*NEGATIVES, *PROMPTS]).chunk(2)

    def predict(latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timestep.expand(len(latents))
        unguided = None if guidance == 1 else negative
        flow = guided(family.denoise, latents, timesteps, unguided, positive, guidance, family.combine)
        return family.process.split(flow, latents, timesteps)

    latents = samplers.euler(predict, noise, family.spacing(4, family.process, (16, 24)), family.process)
    assert stock["pt"].std() > 0.05, "a picture that could differ"
    assert difference(pipeline._pack_latents(latents, *latents.shape), stock["latent"]) <= SAMPLED
    assert difference((family.decode(latents) + 1) / 2, stock["pt"]) <= SAMPLED


@torch.no_grad()
def test_latents_of_a_picture_are_normalised_as_the_stock_pipelines_for_pictures_do_it(both: tuple[Any, Path]) -> None:
    from diffusers import QwenImageImg2ImgPipeline

    pipeline, folder = both
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stock = QwenImageImg2ImgPipeline(**pipeline.components)
    wanted = stock._encode_vae_image(image[:, :, None], generator=torch.Generator().manual_seed(1))
    ours = QwenImage.from_pretrained(folder).encode_image(image, generator=torch.Generator().manual_seed(1))
    assert difference(ours, wanted.squeeze(2)) <= TOLERANCE


@torch.no_grad()
def test_the_stock_pipeline_reads_what_we_write_and_draws_the_same(both: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = both
    QwenImage.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    again = type(pipeline).from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    pictures = [p("a star", generator=torch.Generator().manual_seed(0), **settings).images for p in (pipeline, again)]
    assert difference(*pictures) <= TOLERANCE


def test_tokens_are_counted_with_those_of_the_chat(both: tuple[Any, Path]) -> None:
    counted, limit = QwenImage.token_counts(["", "ab"], both[1], text_tokens=30)["qwen"]
    assert limit == 64
    assert counted == [39, 41]  # 34 before the prompt, 5 behind it
    with pytest.raises(ValueError, match="text_tokens: 0 is no number of tokens"):
        QwenImage.from_pretrained(both[1], text_tokens=0)
