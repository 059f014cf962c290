"""What every model family promises; one row of the table per family, tiny, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.models.family import ModelFamily
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.pixart import PixArtSigma
from hcpdiff.models.qwen_image import QwenImage
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from hcpdiff.models.sdxl import SDXL
from hcpdiff.models.zimage import ZImage
from hcpdiff.types import Conditioning, SizeInfo
from tests.models.tiny import tiny_pipeline
from tests.models.tiny_flux import tiny_flux_pipeline
from tests.models.tiny_pixart import tiny_pixart
from tests.models.tiny_qwen import tiny_qwen_image
from tests.models.tiny_unet import tiny_sd, tiny_sdxl
from tests.models.tiny_zimage import tiny_zimage

pytest.importorskip("diffusers")


@dataclass(frozen=True)
class Row:
    write: Callable[[Path], object]  # a folder of the model
    load: Callable[[Path], ModelFamily]


FAMILIES = {
    "SD": Row(lambda folder: tiny_sd().save_pretrained(folder), StableDiffusion.from_pretrained),
    "SD with v-prediction": Row(
        lambda folder: tiny_sd("v_prediction", zero_terminal_snr=True).save_pretrained(folder),
        lambda folder: StableDiffusion.from_pretrained(folder, clip_skip=1),
    ),
    "SDXL": Row(lambda folder: tiny_sdxl().save_pretrained(folder), SDXL.from_pretrained),
    "SD3": Row(
        lambda folder: tiny_pipeline(t5=False).save_pretrained(folder),
        lambda folder: SD3.from_pretrained(folder, t5_tokens=7),
    ),
    "SD3.5 with T5": Row(
        lambda folder: tiny_pipeline(t5=True, shape="sd3.5-medium").save_pretrained(folder),
        lambda folder: SD3.from_pretrained(folder, t5_tokens=7),
    ),
    "FLUX dev": Row(
        lambda folder: tiny_flux_pipeline("dev").save_pretrained(folder),
        lambda folder: Flux.from_pretrained(folder, t5_tokens=7),
    ),
    "FLUX schnell": Row(
        lambda folder: tiny_flux_pipeline("schnell").save_pretrained(folder),
        lambda folder: Flux.from_pretrained(folder, t5_tokens=7),
    ),
    "PixArt-Sigma": Row(
        lambda folder: tiny_pixart().save_pretrained(folder),
        lambda folder: PixArtSigma.from_pretrained(folder, t5_tokens=9),
    ),
    "Z-Image": Row(
        lambda folder: tiny_zimage().save_pretrained(folder),
        lambda folder: ZImage.from_pretrained(folder, text_tokens=18),
    ),
    "Qwen-Image": Row(
        lambda folder: tiny_qwen_image().save_pretrained(folder),
        lambda folder: QwenImage.from_pretrained(folder, text_tokens=18),
    ),
}
PROMPTS = ["a red star", "blue"]
TOLERANCE = 1e-5  # fp32: other batch sizes sum in another order


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def family(row: Row, tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    folder = tmp_path_factory.mktemp("family")
    row.write(folder)
    return row.load(folder)


def latents(family: ModelFamily, batch: int = 2) -> Tensor:
    return torch.randn(batch, family.latent.channels, 8, 12, generator=torch.Generator().manual_seed(0))


def condition(family: ModelFamily, prompts: list[str]) -> Conditioning:
    cell = family.latent.downscale
    size = SizeInfo((8 * cell, 12 * cell), (0, 0), (8 * cell, 12 * cell))
    return family.with_size(family.encode_prompt(prompts), [size] * len(prompts))


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@torch.no_grad()
def test_decode_undoes_encode_image_in_shape_and_range(family: ModelFamily) -> None:
    height, width = family.latent.multiple_of * 3, family.latent.multiple_of * 2
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = family.encode_image(images)
    assert encoded.shape == (
        2,
        family.latent.channels,
        height // family.latent.downscale,
        width // family.latent.downscale,
    )
    decoded = family.decode(encoded)
    assert decoded.shape == images.shape
    assert -1 <= decoded.min() < decoded.max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denoise_keeps_shape_and_dtype(family: ModelFamily, dtype: torch.dtype) -> None:
    noisy = latents(family).to(dtype)
    predicted = family.denoise(noisy, torch.tensor([10.0, 900.0]), condition(family, PROMPTS))
    assert predicted.shape == noisy.shape
    assert predicted.dtype == dtype
    assert predicted.isfinite().all()


@torch.no_grad()
def test_a_batch_of_two_equals_two_of_one(family: ModelFamily) -> None:
    noisy, timesteps = latents(family), torch.tensor([100.0, 700.0])
    together = family.denoise(noisy, timesteps, condition(family, PROMPTS))
    alone = [
        family.denoise(noisy[i : i + 1], timesteps[i : i + 1], condition(family, PROMPTS[i : i + 1])) for i in (0, 1)
    ]
    assert_close(together, torch.cat(alone))
    assert (together[0] - together[1]).abs().max() > 0.01, "rows that could be mixed up"


@torch.no_grad()
def test_prompts_are_encoded_one_by_one_or_together_alike(family: ModelFamily) -> None:
    together = family.encode_prompt(PROMPTS)
    joined = Conditioning.cat([family.encode_prompt([prompt]) for prompt in PROMPTS])
    assert_close(together.tokens, joined.tokens)
    assert (together.mask is None) == (joined.mask is None)
    assert together.mask is None or torch.equal(together.mask, joined.mask)
    assert together.pooled is None or assert_close(together.pooled, joined.pooled) is None
    assert together.extras.keys() == joined.extras.keys()


def test_gradients_reach_a_low_rank_change_of_every_linear_layer(family: ModelFamily) -> None:
    layers = {
        name: layer
        for name, layer in family.named_modules()
        if isinstance(layer, nn.Linear) and not name.startswith("vae")
    }
    down = {n: nn.Parameter(torch.randn(2, layer.in_features) * 0.1) for n, layer in layers.items()}
    up = {n: nn.Parameter(torch.randn(layer.out_features, 2) * 0.1) for n, layer in layers.items()}

    def hook_for(name: str) -> Callable[..., Tensor]:
        return lambda _, args, output: output + args[0] @ down[name].T @ up[name].T

    handles = [layer.register_forward_hook(hook_for(name)) for name, layer in layers.items()]
    family.requires_grad_(False)
    try:
        conditioning = condition(family, PROMPTS)
        family.denoise(latents(family), torch.tensor([100.0, 700.0]), conditioning).square().sum().backward()
    finally:
        family.requires_grad_(True)
        for handle in handles:
            handle.remove()
    idle = {name for name in layers if up[name].grad is None or not up[name].grad.any()}
    assert idle <= idle_layers(family), idle - idle_layers(family)


def idle_layers(family: ModelFamily) -> set[str]:
    """Layers that by design do not change the prediction."""
    if isinstance(family, (StableDiffusion, SDXL)):  # layers of CLIP that are skipped
        return {
            name
            for name, _ in family.named_modules()
            if any(f".layers.{2 - i}." in name for i in range(family.clip_skip)) and "clip_g" not in name
        }
    if isinstance(family, SD3):  # the last block's text is attended to but asks nothing itself
        return {f"denoiser.transformer_blocks.{len(family.denoiser.transformer_blocks) - 1}.attn.add_q_proj"}
    if isinstance(family, ZImage):  # the layer of the language model after the one that is read
        return {name for name, _ in family.named_modules() if name.startswith("text_encoders.qwen.layers.2.")}
    if isinstance(family, QwenImage):  # what reads pictures and guesses words, and the text after the last attention
        last = f"denoiser.transformer_blocks.{len(family.denoiser.transformer_blocks) - 1}"
        text = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
        unread = ("text_encoders.qwen.model.visual.", "text_encoders.qwen.lm_head")
        return {f"{last}.{name}" for name in text} | {n for n, _ in family.named_modules() if n.startswith(unread)}
    return set()


def test_text_encoders_and_vae_stay_in_eval_mode(family: ModelFamily) -> None:
    family.train()
    try:
        assert family.denoiser.training
        assert not family.text_encoders.training
        assert not family.vae.training
    finally:
        family.eval()


def test_gradients_are_the_same_with_checkpointing(family: ModelFamily) -> None:
    def gradients() -> list[Tensor]:
        family.zero_grad()
        family.denoise(latents(family), torch.tensor([100.0, 700.0]), conditioning).square().sum().backward()
        return [p.grad for p in family.denoiser.parameters() if p.grad is not None]

    with torch.no_grad():
        conditioning = condition(family, PROMPTS)
    plain = gradients()
    try:
        for mode in ("all", 2):
            family.gradient_checkpointing(mode)
            for again, wanted in zip(gradients(), plain, strict=True):
                torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-5)  # sums in another order
    finally:
        family.gradient_checkpointing("none")
        family.zero_grad()


def test_configs_alone_give_skeleton_latents_and_token_counts(row: Row, family: ModelFamily, tmp_path: Path) -> None:
    kind, folder = type(family), tmp_path / "model"
    row.write(folder)
    for weights in folder.rglob("*.safetensors"):
        if weights.parent.name != "text_encoder_3":  # of a T5, the weights tell whether it is only a placeholder
            weights.unlink()
    assert kind.latent_spec(folder) == family.latent
    assert kind.skeleton("denoiser", folder).state_dict().keys() == family.denoiser.state_dict().keys()
    counts = kind.token_counts(["", "ab", "abcd"], folder)
    assert counts.keys() == set(family.text_encoders)
    for counted, limit in counts.values():
        assert counted == sorted(set(counted))
        assert limit >= 7


@torch.no_grad()
def test_saving_and_loading_is_bit_equal(row: Row, family: ModelFamily, tmp_path: Path) -> None:
    family.save_pretrained(tmp_path / "saved")
    again = row.load(tmp_path / "saved")
    state = again.state_dict()
    assert state.keys() == family.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in family.state_dict().items())
    conditioning = condition(family, PROMPTS)
    for timesteps in (torch.tensor([0.0, 1000.0]), torch.tensor([3.5, 500.0])):
        predictions = [f.denoise(latents(f), timesteps, conditioning) for f in (family, again)]
        assert torch.equal(*predictions)
