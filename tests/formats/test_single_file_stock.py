"""Single files that this package writes, as diffusers reads them, offline and bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hcpdiff.formats.single_file import dit
from hcpdiff.formats.single_file.table import originals


def read_part(kind: str, root: Path, part: str) -> Any:
    import diffusers

    return getattr(diffusers, kind).from_single_file(
        str(root / "model.safetensors"), config=str(root / "folder"), subfolder=part, local_files_only=True
    )


def folder_part(kind: str, root: Path, part: str) -> Any:
    import diffusers

    return getattr(diffusers, kind).from_pretrained(root / "folder" / part)


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("sd1", "UNet2DConditionModel", "unet"),
        ("sd1", "AutoencoderKL", "vae"),
        ("sd2", "UNet2DConditionModel", "unet"),
        ("sdxl", "UNet2DConditionModel", "unet"),
        ("sdxl", "AutoencoderKL", "vae"),
        ("sd3-medium", "SD3Transformer2DModel", "transformer"),
        ("sd3.5-medium", "SD3Transformer2DModel", "transformer"),
        ("sd3.5-large", "SD3Transformer2DModel", "transformer"),
        ("sd3-medium", "AutoencoderKL", "vae"),
        ("flux-dev", "AutoencoderKL", "vae"),
    ],
)
def test_diffusers_reads_the_same_weights(
    name: str,
    kind: str,
    part: str,
    made: Callable[[str], Path],
) -> None:
    stock, expected = read_part(kind, made(name), part).state_dict(), folder_part(kind, made(name), part).state_dict()
    assert stock.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(stock[key], expected[key])] == []


def test_the_whole_pipeline_of_stable_diffusion_1_makes_the_same_picture(
    made: Callable[[str], Path],
) -> None:
    from diffusers import StableDiffusionPipeline

    root = made("sd1")
    single = StableDiffusionPipeline.from_single_file(
        str(root / "model.safetensors"), config=str(root / "folder"), local_files_only=True, safety_checker=None
    )
    pictures = []
    for pipeline in (single, StableDiffusionPipeline.from_pretrained(root / "folder", safety_checker=None)):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(
            pipeline("ab c", height=16, width=16, num_inference_steps=2, generator=generator, output_type="pt").images
        )
    assert torch.equal(*pictures)


def test_open_clip_is_read_as_transformers_has_it(made: Callable[[str], Path]) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from safetensors.torch import load_file
    from transformers import CLIPTextModelWithProjection

    root, prefix = made("sdxl"), "conditioner.embedders.1.model."
    model = CLIPTextModelWithProjection.from_pretrained(root / "folder" / "text_encoder_2")
    tensors = load_file(root / "model.safetensors")
    converted = convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix)
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(converted[key], expected[key])] == []


@pytest.mark.parametrize("guidance", [True, False])
def test_diffusers_reads_flux_at_its_true_width(guidance: bool) -> None:
    """It knows no other width; all that is joined is joined by rows, so one column of each matrix shows where it is."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=guidance)
    expected = {
        key: torch.arange(len(tensor)).reshape(-1, *[1] * (tensor.ndim - 1)) + 100_000.0 * i
        for i, (key, tensor) in enumerate(model.state_dict().items())
    }
    table = dit.flux({key: tuple(tensor.shape) for key, tensor in expected.items()})
    converted = convert_flux_transformer_checkpoint_to_diffusers(
        {key: make() for key, make in originals(table, expected).items()}
    )
    assert converted.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(converted[key], expected[key])] == []
