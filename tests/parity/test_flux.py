"""FLUX against diffusers: the transformer, and the family against FluxPipeline, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.flux.transformer import FluxTransformer, packed, unpacked
from hcpdiff.plugins import LoRA, PluginSpec
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.weights import save
from tests.models.tiny_flux import SHAPES, flux_inputs, tiny_flux, tiny_flux_pipeline

diffusers = pytest.importorskip("diffusers")

PROMPTS, NEGATIVES = ["a red star", "blue"], ["dull", "a cat"]
TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order
SAMPLED = 1e-4  # the same, of four steps


def pair(shape: str) -> tuple[FluxTransformer, nn.Module]:
    ours = tiny_flux(shape)
    theirs = diffusers.FluxTransformer2DModel(**SHAPES[shape])
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def run_theirs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    pipeline, (batch, channels, height, width) = diffusers.FluxPipeline, inputs["noisy_latents"].shape
    flow = model(
        hidden_states=pipeline._pack_latents(inputs["noisy_latents"], batch, channels, height, width),
        timestep=inputs["timesteps"] / 1000,
        guidance=inputs.get("guidance"),
        encoder_hidden_states=inputs["tokens"],
        pooled_projections=inputs["pooled"],
        txt_ids=torch.zeros(inputs["tokens"].shape[1], 3),
        img_ids=pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    return pipeline._unpack_latents(flow, height, width, 1)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value; absolute where all of theirs is zero."""
    return ((ours - theirs).abs().max() / (theirs.abs().max() or 1)).item()


@pytest.mark.parametrize("size", [(12, 8), (2, 22), (24, 24)])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_diffusers(shape: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(shape)
    inputs = flux_inputs(ours.config, size=size)
    assert difference(ours(**inputs), run_theirs(theirs, inputs)) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_every_gradient_equals_diffusers(shape: str) -> None:
    ours, theirs = pair(shape)
    inputs = flux_inputs(ours.config)
    told = ("timesteps", "guidance")
    copies = [{k: v.clone().requires_grad_(k not in told) for k, v in inputs.items()} for _ in range(2)]
    outputs = ours(**copies[0]), run_theirs(theirs, copies[1])
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    wanted = dict(theirs.named_parameters())
    assert wanted.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert wanted[name].grad.any(), name
        assert difference(parameter.grad, wanted[name].grad) <= TOLERANCE, name
    for name in copies[0].keys() - {*told}:
        assert difference(copies[0][name].grad, copies[1][name].grad) <= TOLERANCE, name


def test_latents_are_packed_and_unpacked_as_the_stock_pipeline_does() -> None:
    latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    tokens = packed(latents)
    assert torch.equal(tokens, diffusers.FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpacked(tokens, 3, 5), latents)


@torch.no_grad()
def test_in_float16_tokens_stay_in_range_as_in_diffusers() -> None:
    ours, theirs = (model.half() for model in pair("dev"))
    inputs = {k: v if k in ("timesteps", "guidance") else v.half() for k, v in flux_inputs(ours.config).items()}
    for model in (ours, theirs):
        model.transformer_blocks[0].ff_context.net[2].bias.fill_(6e4)
        model.transformer_blocks[1].ff_context.net[2].bias.fill_(6e4)
        model.transformer_blocks[0].norm1_context.linear.bias.fill_(1.0)
        model.transformer_blocks[1].norm1_context.linear.bias.fill_(1.0)
    flow, wanted = ours(**inputs), run_theirs(theirs, inputs)
    assert flow.isfinite().all()
    assert difference(flow.float(), wanted.float()) < 0.02  # 11 bits through five blocks


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipeline = tiny_flux_pipeline(request.param)
    folder = tmp_path_factory.mktemp("flux")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@torch.no_grad()
def test_conditioning_equals_the_stock_pipeline(both: tuple[Any, Path]) -> None:
    pipeline, folder = both
    tokens, pooled, ids = pipeline.encode_prompt(PROMPTS, max_sequence_length=7)
    ours = Flux.from_pretrained(folder, t5_tokens=7).encode_prompt(PROMPTS)
    assert ours.mask is None
    assert not ids.any(), "text has no place"
    assert difference(ours.tokens, tokens) <= TOLERANCE
    assert difference(ours.pooled, pooled) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("true_guidance", [1.0, 2.5])
def test_sampling_equals_the_stock_pipeline(both: tuple[Any, Path], true_guidance: float) -> None:
    pipeline, folder = both
    told = {"embedded_guidance": 5.0} if pipeline.transformer.config.guidance_embeds else {}
    family = Flux.from_pretrained(folder, t5_tokens=7, **told)
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    settings = {"height": 16, "width": 24, "num_inference_steps": 4, "max_sequence_length": 7, "guidance_scale": 5.0}
    stock = {
        kind: pipeline(
            PROMPTS,
            negative_prompt=NEGATIVES,
            true_cfg_scale=true_guidance,
            latents=packed(noise),
            output_type=kind,
            **settings,
        ).images
        for kind in ("latent", "pt")
    }
    negative, positive = family.encode_prompt([*NEGATIVES, *PROMPTS]).chunk(2)

    def predict(latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timestep.expand(len(latents))
        flow = guided(family.denoise, latents, timesteps, negative, positive, true_guidance)
        return family.process.split(flow, latents, timesteps)

    latents = samplers.euler(predict, noise, family.spacing(4, family.process, (16, 24)), family.process)
    assert stock["pt"].std() > 0.05, "a picture that could differ"
    assert difference(packed(latents), stock["latent"]) <= SAMPLED
    assert difference((family.decode(latents) + 1) / 2, stock["pt"]) <= SAMPLED


@pytest.mark.parametrize("settings", [
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 2.0, "base_image_seq_len": 100},
    {"use_dynamic_shifting": True, "max_image_seq_len": 1000, "shift": 3.0},
    {"shift": 1.0},
    {"shift": 3.0},
    {},
])  # fmt: skip
def test_default_steps_equal_the_stock_pipelines_for_every_scheduler_and_size(
    settings: dict[str, Any], both: tuple[Any, Path]
) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    family = Flux.from_pretrained(both[1])
    family.scheduler = settings
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    for steps, size in ((1, (16, 16)), (4, (64, 64)), (20, (64, 96)), (28, (256, 256))):
        tokens = size[0] * size[1] // family.latent.multiple_of**2
        mu = calculate_shift(tokens, *(scheduler.config[key] for key in keys))
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        ours = family.spacing(steps, family.process, size)
        torch.testing.assert_close(ours.float(), scheduler.timesteps, rtol=1e-6, atol=1e-3)  # theirs are float32


@torch.no_grad()
def test_the_stock_pipeline_reads_what_we_write_and_draws_the_same(both: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = both
    Flux.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    reloaded = diffusers.FluxPipeline.from_pretrained(tmp_path / "saved")
    reloaded.set_progress_bar_config(disable=True)
    settings = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 7, "output_type": "pt"}
    pictures = [
        p("a star", generator=torch.Generator().manual_seed(0), **settings).images for p in (pipeline, reloaded)
    ]
    assert difference(*pictures) <= TOLERANCE  # diffusers maps weights from the file, at other addresses
    assert reloaded.scheduler.config.use_dynamic_shifting == pipeline.scheduler.config.use_dynamic_shifting


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusers_reads_what_we_write_and_we_what_it_writes(shape: str, tmp_path: Path) -> None:
    ours, theirs = pair(shape)
    inputs = flux_inputs(ours.config)
    ours.save_pretrained(tmp_path / "ours")
    stock, info = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(run_theirs(stock, inputs), run_theirs(theirs, inputs))

    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("whole", "shards"):
        assert torch.equal(FluxTransformer.from_pretrained(tmp_path / folder)(**inputs), ours(**inputs))


def test_a_lora_that_we_write_loads_in_the_stock_pipeline_with_equal_outputs(tmp_path: Path) -> None:
    class Host(nn.Module):
        def __init__(self, denoiser: nn.Module) -> None:
            super().__init__()
            self.denoiser = denoiser

    ours, theirs = pair("dev")
    inputs = flux_inputs(ours.config)
    plain = ours(**inputs)
    layers = [r"re:transformer_blocks\..*attn\.(?:to|add)_.*", r"re:single_.*\.(?:attn\..*|proj_mlp|proj_out)"]
    group = attach(Host(ours.requires_grad_(False)), {"style": PluginSpec(LoRA, layers=layers, options={"rank": 2})})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in group.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    changed = ours(**inputs)
    save(group, "style", tmp_path / "style.safetensors")

    parts = dict.fromkeys(["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = diffusers.FluxPipeline(transformer=theirs, scheduler=scheduler, **parts)
    pipeline.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
    assert difference(changed, plain) > 0.05
    assert difference(changed, run_theirs(theirs, inputs)) <= TOLERANCE
