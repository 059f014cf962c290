"""The families around a UNet against diffusers' pipelines, on random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided
from hcpdiff.formats import word_files
from hcpdiff.models import SDXL, ModelFamily, StableDiffusion
from hcpdiff.train.words import WordSpec, attach_words
from hcpdiff.types import SizeInfo
from tests.models.tiny_unet import tiny_sd, tiny_sdxl

pytest.importorskip("diffusers")

PROMPTS = ["a red star", "blue"]
TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def sample(family: ModelFamily, noise: Tensor, sizes: Sequence[SizeInfo], steps: int, guidance: float) -> Tensor:
    """Latents by Euler's method, from noise of unit variance."""
    negative, positive = (
        family.with_size(conditioning, sizes) for conditioning in family.encode_prompt(["", "", *PROMPTS]).chunk(2)
    )

    def predict(latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timestep.expand(len(latents))
        prediction = guided(family.denoise, latents, timesteps, negative, positive, guidance)
        return family.process.split(prediction, latents, timesteps)

    return samplers.euler(predict, noise, family.spacing(steps, family.process, (16, 24)), family.process)


@torch.no_grad()
@pytest.mark.parametrize("skip", [0, 1])
def test_the_text_of_sd_equals_the_stock_pipeline(skip: int, tmp_path: Path) -> None:
    pipeline = tiny_sd()
    pipeline.save_pretrained(tmp_path)
    # With new versions of transformers, diffusers looks for the norm in a place that it has left.
    pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder
    wanted, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, clip_skip=skip or None)
    ours = StableDiffusion.from_pretrained(tmp_path, clip_skip=skip).encode_prompt([*PROMPTS])
    assert difference(ours.tokens, wanted) <= TOLERANCE
    empty = StableDiffusion.from_pretrained(tmp_path).encode_prompt([""])
    assert difference(empty.tokens, negative[:1]) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("skip", [1, 2])
def test_the_text_of_sdxl_equals_the_stock_pipeline(skip: int, tmp_path: Path) -> None:
    pipeline = tiny_sdxl()
    pipeline.save_pretrained(tmp_path)
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", clip_skip=skip - 1 or None)
    family = SDXL.from_pretrained(tmp_path, clip_skip=skip)
    before = {key: tensor.clone() for key, tensor in family.text_encoders.state_dict().items()}
    for _ in range(2):  # the second reading means the same: none changes a weight
        ours = family.encode_prompt(PROMPTS)
        assert difference(ours.tokens, tokens) <= TOLERANCE
        assert ours.pooled is not None
        assert difference(ours.pooled, pooled) <= TOLERANCE
    assert all(torch.equal(before[key], tensor) for key, tensor in family.text_encoders.state_dict().items())


@torch.no_grad()
def test_an_empty_prompt_of_sdxl_can_be_zeros_as_where_none_is_given(tmp_path: Path) -> None:
    pipeline = tiny_sdxl()
    pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    pipeline.save_pretrained(tmp_path)
    _, negative, _, pooled = pipeline.encode_prompt(PROMPTS, device="cpu")
    ours = SDXL.from_pretrained(tmp_path).encode_prompt(["", "", *PROMPTS])
    assert torch.equal(ours.tokens[:2], negative)
    assert ours.pooled is not None
    assert torch.equal(ours.pooled[:2], pooled)
    assert ours.tokens[2:].abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("prediction", "zero_terminal_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_sampling_sd_with_guidance_equals_the_stock_pipeline(
    prediction: str, zero_terminal_snr: bool, tmp_path: Path
) -> None:
    pipeline = tiny_sd(prediction, zero_terminal_snr=zero_terminal_snr)
    pipeline.save_pretrained(tmp_path)
    family = StableDiffusion.from_pretrained(tmp_path)
    assert family.process.prediction == prediction
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}
    stock = pipeline(PROMPTS, latents=noise, height=16, width=24, **settings).images
    ours = sample(family, noise, [], 6, 4.0)
    assert difference(ours, stock) <= 1e-4  # rounding of six steps


@torch.no_grad()
def test_sampling_sdxl_with_guidance_and_sizes_equals_the_stock_pipeline(tmp_path: Path) -> None:
    pipeline = tiny_sdxl()
    pipeline.save_pretrained(tmp_path)
    family = SDXL.from_pretrained(tmp_path)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    told = {"original_size": (40, 50), "crops_coords_top_left": (3, 7), "target_size": (16, 24)}
    settings: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}
    stock = pipeline(PROMPTS, latents=noise, height=16, width=24, **told, **settings).images
    sizes = [SizeInfo((40, 50), (3, 7), (16, 24))] * 2
    assert difference(sample(family, noise, sizes, 6, 4.0), stock) <= 1e-4  # rounding of six steps
    other = [SizeInfo((50, 40), (3, 7), (16, 24))] * 2
    assert difference(sample(family, noise, other, 6, 4.0), stock) > 1e-3, "height and width are told apart"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_learned_word_that_a_run_leaves_draws_the_same_in_the_stock_pipeline(kind: str, tmp_path: Path) -> None:
    pipeline, family = (tiny_sd(), StableDiffusion) if kind == "sd" else (tiny_sdxl(), SDXL)
    pipeline.save_pretrained(tmp_path)
    pipeline, model = type(pipeline).from_pretrained(tmp_path), family.from_pretrained(tmp_path)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    sizes = [SizeInfo((16, 24), (0, 0), (16, 24))] * 2
    plain = sample(model, noise, sizes, 4, 4.0)
    words = attach_words(model, {"star": WordSpec(init="*[2, 3]")}, seed=0)
    ours = sample(model, noise, sizes, 4, 4.0)
    assert difference(ours, plain) > 0.01
    (file,) = word_files.write({"star": words.of("star")}, tmp_path / "star.safetensors", "kohya")
    if kind == "sd":
        pipeline.load_textual_inversion(str(file), token="star")
    else:
        for name, end in (("clip_l", ""), ("clip_g", "_2")):
            parts = {part: getattr(pipeline, f"{part}{end}") for part in ("text_encoder", "tokenizer")}
            pipeline.load_textual_inversion(load_file(file)[name], token="star", **parts)
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "latent"}
    stock = pipeline(PROMPTS, latents=noise, height=16, width=24, **settings).images
    assert difference(ours, stock) <= 1e-4  # rounding of four steps


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_stock_pipeline_reads_what_we_write_and_draws_the_same(kind: str, tmp_path: Path) -> None:
    pipeline, family = (tiny_sd(), StableDiffusion) if kind == "sd" else (tiny_sdxl(), SDXL)
    pipeline.save_pretrained(tmp_path / "stock")
    family.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    again = type(pipeline).from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    pictures = [p("a star", generator=torch.Generator().manual_seed(0), **settings).images for p in (pipeline, again)]
    assert difference(*pictures) <= TOLERANCE
    assert again.scheduler.config.timestep_spacing == "leading"
