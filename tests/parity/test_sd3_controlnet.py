"""Our ControlNet against diffusers' SD3ControlNetModel, alone and in the stock pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.plugins import ControlNet, PluginGroup, PluginInputs, PluginSpec
from hcpdiff.plugins.attach import attach
from tests.models.tiny import SHAPES, mmdit_inputs, randomise, tiny_mmdit
from tests.plugins.toys import Family

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4  # of values around 1; fp32 sums in another order, through several steps
LAYERS = {"sd3-medium": 2, "sd3.5-medium": 1, "sd3.5-large": 3}  # of 3, 3 and 4 blocks


def plugged(shape: str, **options: object) -> tuple[Family, PluginGroup]:
    family = Family(tiny_mmdit(shape)).requires_grad_(False)
    group = attach(family, {"pose": PluginSpec(ControlNet, options=options)})
    return family, group


def plugin(group: PluginGroup) -> ControlNet:
    (found,) = group.plugins("pose").values()
    assert isinstance(found, ControlNet)
    return found


def stock(shape: str, group: PluginGroup, folder: Path) -> tuple[nn.Module, nn.Module]:
    """diffusers' transformer and ControlNet with the same weights."""
    plugin(group).save_pretrained(folder)
    transformer = diffusers.SD3Transformer2DModel(**SHAPES[shape])
    transformer.load_state_dict(tiny_mmdit(shape).state_dict())
    controlnet = diffusers.SD3ControlNetModel.from_pretrained(folder, low_cpu_mem_usage=False)
    return transformer.eval(), controlnet.eval()


def run_stock(
    transformer: nn.Module, controlnet: nn.Module, inputs: dict[str, Tensor], control: Tensor, scale: float
) -> Tensor:
    common = {
        "hidden_states": inputs["noisy_latents"],
        "timestep": inputs["timesteps"],
        "encoder_hidden_states": inputs["tokens"],
        "return_dict": False,
    }
    zero = controlnet.config.force_zeros_for_pooled_projection
    pooled = inputs["pooled"] * (0 if zero else 1)
    samples = controlnet(**common, controlnet_cond=control, conditioning_scale=scale, pooled_projections=pooled)[0]
    return transformer(**common, pooled_projections=inputs["pooled"], block_controlnet_hidden_states=samples)[0]


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("zero_pooled", [True, False])
@torch.no_grad()
def test_equals_diffusers_from_latents_at_any_strength(shape: str, zero_pooled: bool, tmp_path: Path) -> None:
    family, group = plugged(shape, num_layers=LAYERS[shape], zero_pooled=zero_pooled)
    inputs = mmdit_inputs(family.denoiser.config)
    control = torch.randn(inputs["noisy_latents"].shape, generator=torch.Generator().manual_seed(2))
    group.feed(PluginInputs({"control_image": control}))
    plain = tiny_mmdit(shape).requires_grad_(False)(**inputs)  # frozen as the host is: one matmul for q, k and v
    assert torch.equal(family.denoiser(**inputs), plain)
    randomise(plugin(group), scale=0.1)
    models = stock(shape, group, tmp_path)
    for strength in (1.0, 0.6):
        group.set_strength("pose", strength)
        ours, theirs = family.denoiser(**inputs), run_stock(*models, inputs, control, strength)
        assert (ours - plain).abs().max() > 0.01
        assert torch.allclose(ours, theirs, atol=TOLERANCE)


def test_reads_and_writes_the_folder_of_diffusers(tmp_path: Path) -> None:
    theirs = diffusers.SD3ControlNetModel(**SHAPES["sd3-medium"] | {"num_layers": 2}, extra_conditioning_channels=1)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    _, group = plugged("sd3-medium", pretrained=str(tmp_path / "theirs"))
    state = plugin(group).own_state()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())
    plugin(group).save_pretrained(tmp_path / "ours")
    again = diffusers.SD3ControlNetModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.config.items() if k[0] != "_"
    }
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        plugged("sd3-medium", pretrained=str(tmp_path))


def tiny_vae() -> nn.Module:
    vae = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )
    randomise(vae)
    with torch.no_grad():  # a variance of e^-30, so that drawing from the posterior gives its mean
        vae.encoder.conv_out.weight[4:] = 0
        vae.encoder.conv_out.bias[4:] = -30
    return vae.requires_grad_(False).eval()


def with_vae(family: Family, vae: nn.Module) -> Family:
    family.vae = vae
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    encode = lambda images: (vae.encode(images).latent_dist.mean - shift) * scale  # noqa: E731
    family.__dict__["encode_image"] = encode
    return family


@pytest.mark.parametrize("zero_pooled", [True, False])
@torch.no_grad()
def test_images_give_the_same_picture_as_the_stock_pipeline(zero_pooled: bool, tmp_path: Path) -> None:
    family, group = plugged("sd3-medium", num_layers=2, zero_pooled=zero_pooled)
    vae, config = tiny_vae(), family.denoiser.config
    randomise(plugin(group), scale=0.1)
    transformer, controlnet = stock("sd3-medium", group, tmp_path)
    inputs = mmdit_inputs(config, batch=2)  # rows [negative | positive] of one picture
    latents = inputs["noisy_latents"][:1]
    image = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(3))
    parts = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    pipeline = diffusers.StableDiffusion3ControlNetPipeline(
        **parts,
        transformer=transformer,
        vae=vae,
        controlnet=controlnet,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=inputs["tokens"][1:],
        negative_prompt_embeds=inputs["tokens"][:1],
        pooled_prompt_embeds=inputs["pooled"][1:],
        negative_pooled_prompt_embeds=inputs["pooled"][:1],
        control_image=image * 2 - 1,
        controlnet_conditioning_scale=0.7,
        latents=latents.clone(),
        height=24,
        width=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="latent",
    ).images

    with_vae(family, vae)
    group.set_strength("pose", 0.7)
    sigmas = pipeline.scheduler.sigmas
    for i, sigma in enumerate(sigmas[:-1]):
        timesteps = torch.full((2,), float(sigma) * 1000)
        group.feed(PluginInputs({"control_image": image}, timesteps=timesteps))
        flow = family.denoiser(torch.cat([latents, latents]), timesteps, inputs["tokens"], inputs["pooled"])
        negative, positive = flow.chunk(2)
        latents = latents + (sigmas[i + 1] - sigma) * (negative + 4.0 * (positive - negative))
    assert torch.allclose(latents, theirs, atol=TOLERANCE)


def test_half_precision_bases_keep_float32_weights_and_train_them() -> None:
    family, group = plugged("sd3-medium", num_layers=2)
    family.denoiser.to(torch.bfloat16)
    randomise(plugin(group), scale=0.1)
    inputs = mmdit_inputs(family.denoiser.config)
    half = {k: v if k == "timesteps" else v.to(torch.bfloat16) for k, v in inputs.items()}
    group.feed(PluginInputs({"control_image": inputs["noisy_latents"]}))
    output = family.denoiser(**half)
    assert output.dtype is torch.bfloat16
    assert torch.allclose(output.float(), plain_float(inputs), atol=0.1)  # bf16 has 8 bits
    output.float().square().sum().backward()
    trained = [p for p in plugin(group).parameters() if p.grad is not None]
    assert all(p.dtype is torch.float32 for p in trained)
    assert len(trained) > 20


def plain_float(inputs: dict[str, Tensor]) -> Tensor:
    family, group = plugged("sd3-medium", num_layers=2)
    randomise(plugin(group), scale=0.1)
    group.feed(PluginInputs({"control_image": inputs["noisy_latents"]}))
    return family.denoiser(**inputs)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for mode in ("none", "all"):
        family, group = plugged("sd3-medium", num_layers=2)
        family.denoiser.gradient_checkpointing(mode)
        randomise(plugin(group), scale=0.1)
        inputs = mmdit_inputs(family.denoiser.config)
        group.feed(PluginInputs({"control_image": inputs["noisy_latents"]}))
        mask = torch.ones(2, 5)
        mask[:, -1] = 3  # one token that counts for three
        family.denoiser(**inputs, mask=mask).square().sum().backward()
        grads.append([p.grad for p in plugin(group).parameters()])
    assert any(g is not None for g in grads[0])
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_token_that_counts_for_many_equals_many_tokens() -> None:
    family, group = plugged("sd3-medium", num_layers=2)
    randomise(plugin(group), scale=0.1)
    inputs = mmdit_inputs(family.denoiser.config)
    group.feed(PluginInputs({"control_image": inputs["noisy_latents"]}))
    many = inputs | {"tokens": torch.cat([inputs["tokens"], inputs["tokens"][:, -1:].expand(-1, 3, -1)], dim=1)}
    mask = torch.tensor([[1.0, 1, 1, 1, 4]] * 2)
    assert torch.allclose(family.denoiser(**inputs, mask=mask), family.denoiser(**many), atol=1e-5)  # fp32 sums


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"plugins\.pose: num_layers: 3 of 3 blocks"):
        plugged("sd3-medium", num_layers=3)
    _, group = plugged("sd3-medium")
    with pytest.raises(ValueError, match=r"plugins\.pose: there is no control_image"):
        group.feed(PluginInputs())
    with pytest.raises(ValueError, match=r"5 channels; it must be an image with 3, or latents with 4"):
        group.feed(PluginInputs({"control_image": torch.zeros(1, 5, 8, 8)}))


def test_an_image_is_encoded_once() -> None:
    family, group = plugged("sd3-medium")
    calls = []
    family.__dict__["encode_image"] = lambda images: calls.append(images) or torch.zeros(1, 4, 12, 8)
    family.vae = nn.Module()
    family.vae.config = SimpleNamespace(shift_factor=None, scaling_factor=2.0)
    image = torch.rand(1, 3, 24, 16)
    for _ in range(3):
        group.feed(PluginInputs({"control_image": image}))
    assert len(calls) == 1
    assert torch.equal(calls[0], image * 2 - 1)
