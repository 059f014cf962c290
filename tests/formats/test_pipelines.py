"""Our files in the stock pipelines, and theirs here: the same numbers from denoiser and text encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hcpdiff.formats import convert, detect, diffusers, kohya, names
from hcpdiff.formats.lora_files import write_tensors
from hcpdiff.models import SD3, SDXL, PixArtSigma, QwenImage, StableDiffusion, ZImage
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.flux.transformer import FluxConfig
from hcpdiff.plugins import LoRA, PluginSpec, packing, weights
from hcpdiff.plugins.attach import attach
from tests.models import tiny, tiny_flux, tiny_pixart, tiny_qwen, tiny_unet, tiny_zimage
from tests.parity import test_flux, test_lora_peft
from tests.plugins.test_lora import shake

peft = pytest.importorskip("peft")

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}  # fp32 sums in another order, through a whole model

UNET_LAYERS = [
    r"re:.*\.attentions\..*",
    r"re:.*\.(?:conv1|conv2|conv_shortcut|time_emb_proj)",
    r"re:.*samplers\.0\.conv",
]
CLIP_LAYERS = [r"re:.*self_attn\.(?:[qkv]|out)_proj", r"re:.*mlp\.fc[12]"]
DIT_LAYERS = [r"re:(?:single_)?transformer_blocks\.\d+\..*"]
DIFFUSERS_ALONE = (
    "pixart",
    "zimage",
    "qwen_image",
)  # families with diffusers' denoiser; it reads no LoRA of their text
FAMILIES = ["sd", "sdxl", "sd3", "flux", *DIFFUSERS_ALONE]


def family_of(name: str, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """One of our families with random weights, and the stock pipeline with the same."""
    patch.setitem(tiny_unet.UNET, "layers_per_block", 2)  # as every real one has: kohya's names of XL count with it
    makers: dict[str, tuple[Callable[[], Any], Any]] = {
        "sd": (tiny_unet.tiny_sd, StableDiffusion),
        "sdxl": (tiny_unet.tiny_sdxl, SDXL),
        "sd3": (lambda: tiny.tiny_pipeline(shape="sd3.5-medium", t5=True), SD3),
        "flux": (tiny_flux.tiny_flux_pipeline, Flux),
        "pixart": (tiny_pixart.tiny_pixart, PixArtSigma),
        "zimage": (tiny_zimage.tiny_zimage, ZImage),
        "qwen_image": (tiny_qwen.tiny_qwen_image, QwenImage),
    }
    make, family = makers[name]
    pipeline = make()
    pipeline.save_pretrained(folder)
    return family.from_pretrained(folder), pipeline


def lora(family: Any, **options: Any) -> PluginSpec:
    denoiser = DIT_LAYERS if family.architecture in ("sd3", "flux") else UNET_LAYERS
    ons = ["denoiser", *(f"text_encoders.{name}" for name in family.text_encoders if name.startswith("clip"))]
    layers = ["re:.+"] if family.architecture in DIFFUSERS_ALONE else [*denoiser, *CLIP_LAYERS]
    overrides = {r"re:.*(?:to_k|k_proj|conv2)": {"rank": 2}, r"re:.*to_v": {"alpha": 3.0}}
    return PluginSpec(LoRA, on=ons, layers=layers, options={"rank": 4, "alpha": 1.0} | options, overrides=overrides)


@torch.no_grad()
def outputs(denoiser: Any, encoders: list[Any], name: str) -> list[Tensor]:
    """Of every text encoder and of the denoiser, ours or theirs, for random inputs."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    results = [encoder(torch.tensor([[52, 5, 7, 2, 53]]))[0] for encoder in encoders]
    times = torch.tensor([250.0, 750.0])
    if name == "sd":
        return [*results, denoiser(normal(2, 4, 8, 8), times, normal(2, 5, 8))[0]]
    if name == "sdxl":
        added = {"text_embeds": normal(2, 16), "time_ids": normal(2, 6).abs()}
        return [*results, denoiser(normal(2, 4, 8, 8), times, normal(2, 5, 24), added_cond_kwargs=added)[0]]
    if name in DIFFUSERS_ALONE:
        return [_alone(denoiser, name, normal, times)]
    stock = type(denoiser).__module__.startswith("diffusers")
    if name == "sd3":
        config = denoiser.config
        x, tokens, pooled = normal(2, 4, 12, 8), normal(2, 5, config.joint_attention_dim), normal(2, 24)
        run = test_lora_peft.theirs if stock else lambda model, inputs: model(*inputs.values())
        inputs = {"noisy_latents": x, "timesteps": times, "tokens": tokens, "pooled": pooled}
        return [*results, run(denoiser, inputs)]
    config = FluxConfig.from_dict(dict(denoiser.config)) if stock else denoiser.config
    inputs = tiny_flux.flux_inputs(config)
    return [*results, test_flux.run_theirs(denoiser, inputs) if stock else denoiser(**inputs)]


def _alone(denoiser: Any, name: str, normal: Callable[..., Tensor], times: Tensor) -> Tensor:
    if name == "pixart":
        added = {"resolution": None, "aspect_ratio": None}
        text = normal(2, 5, denoiser.config.caption_channels)
        return denoiser(normal(2, 4, 8, 8), text, timestep=times, added_cond_kwargs=added, return_dict=False)[0]
    if name == "zimage":
        images, texts = list(normal(2, 4, 1, 8, 8)), list(normal(2, 5, 16))
        return torch.stack(denoiser(images, times / 1000, texts, return_dict=False)[0])
    text, shapes = normal(2, 5, 16), [[(1, 4, 4)]] * 2
    return denoiser(normal(2, 16, 16), text, timestep=times / 1000, img_shapes=shapes, return_dict=False)[0]


def of_family(family: Any) -> list[Tensor]:
    encoders = [encoder for name, encoder in family.text_encoders.items() if name.startswith("clip")]
    return outputs(family.denoiser, encoders, family.architecture)


def of_pipeline(pipeline: Any, name: str) -> list[Tensor]:
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    encoders = [] if name in DIFFUSERS_ALONE else [pipeline.text_encoder]
    encoders += [pipeline.text_encoder_2] if name in ("sdxl", "sd3") else []
    return outputs(denoiser, encoders, name)


def load(pipeline: Any, folder: Path) -> None:
    """style.safetensors of a folder into the stock pipeline; that of PixArt loads none, and PEFT does it."""
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(str(folder), weight_name="style.safetensors")
    else:
        peft.PeftModel.from_pretrained(pipeline.transformer, convert.convert(folder / "style.safetensors", "peft"))


def same(ours: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, **TOLERANCE) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_our_file_does_in_the_stock_pipeline_what_it_does_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, pipeline = family_of(name, tmp_path / "model", monkeypatch)
    plain = of_family(family)
    group = attach(family, {"style": lora(family)})
    shake(group)
    ours = of_family(family)
    weights.save(group, "style", tmp_path / "style.safetensors")
    form = "kohya" if name in ("sd", "sdxl") else "diffusers"
    assert detect.form(load_file(tmp_path / "style.safetensors"), "file") == form

    load(pipeline, tmp_path)
    assert min((a - b).abs().max() for a, b in zip(ours, plain, strict=True)) > 0.01, "the LoRA does something"
    assert same(of_pipeline(pipeline, name), ours)

    again, _ = family_of(name, tmp_path / "again", monkeypatch)
    attached = weights.attach_file(again, tmp_path / "style.safetensors")
    mine, back = group.plugin_state_dict("style"), attached.plugin_state_dict("plugin")
    assert mine.keys() == back.keys()
    exact = [torch.equal(mine[key], back[key]) for key in mine if form == "kohya" and ".to_v." not in key]
    assert all(exact), "only where another alpha is in the matrices they may round"
    assert same(of_family(again), ours)


@pytest.mark.parametrize(
    ("name", "target"), [(n, t) for n in FAMILIES for t in ("kohya", "diffusers") if (n, t) != ("pixart", "kohya")]
)
def test_files_without_our_header_do_the_same(
    name: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, pipeline = family_of(name, tmp_path / "model", monkeypatch)
    group = attach(family, {"style": lora(family)})
    shake(group)
    ours = of_family(family)
    updates = packing.updates_of(group.plugins("style"))
    arch = names.architecture(name)
    assert updates is not None
    tensors, header = (kohya.write(updates, arch), {}) if target == "kohya" else diffusers.write(updates, arch)
    write_tensors(tmp_path / "style.safetensors", tensors, header)
    again, _ = family_of(name, tmp_path / "again", monkeypatch)
    attached = weights.attach_file(again, tmp_path / "style.safetensors")
    if not (target == "kohya" and name in ("sd3", "flux")):  # q, k and v were one: with zeros where one was missing
        assert attached.plugins("plugin").keys() == group.plugins("style").keys()
    assert same(of_family(again), ours)
    if name in DIFFUSERS_ALONE:
        load(pipeline, tmp_path)
        assert same(of_pipeline(pipeline, name), ours)


@pytest.mark.parametrize("name", ["pixart", "zimage"])
def test_files_with_the_names_of_the_original_code_do_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, _ = family_of(name, tmp_path / "model", monkeypatch)
    group = attach(family, {"style": lora(family)})
    shake(group)
    ours = of_family(family)
    updates = packing.updates_of(group.plugins("style"))
    assert updates is not None
    same_name = replace(names.architecture(name), kohya={"denoiser": "lora_unet"})
    original = replace(same_name, original=True)
    named = {layer: update for layer, update in updates.items() if names.to_kohya(original, layer)}
    rest = {layer: update for layer, update in updates.items() if layer not in named}
    write_tensors(tmp_path / "x.safetensors", kohya.write(named, original) | kohya.write(rest, same_name), {})
    assert any("qkv" in key for key in load_file(tmp_path / "x.safetensors"))
    again, _ = family_of(name, tmp_path / "again", monkeypatch)
    weights.attach_file(again, tmp_path / "x.safetensors")
    assert same(of_family(again), ours)


@pytest.mark.parametrize("name", FAMILIES)
def test_files_that_diffusers_wrote_do_here_what_they_do_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, pipeline = family_of(name, tmp_path / "model", monkeypatch)
    part = "unet" if name in ("sd", "sdxl") else "transformer"
    denoiser = getattr(pipeline, part)
    config = {"r": 4, "lora_alpha": 1, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 3}}
    parts, targets = {part: denoiser}, {part: ["to_q", "to_k", "to_v"], "text_encoder": ["q_proj", "k_proj", "fc1"]}
    parts |= {} if name in DIFFUSERS_ALONE else {"text_encoder": pipeline.text_encoder}
    if name == "pixart":  # its pipeline knows no LoRA
        model = peft.get_peft_model(
            denoiser, peft.LoraConfig(**config, target_modules=targets[part], init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / "lora")
        weights.attach_file(family, tmp_path / "lora")
        assert same(of_family(family), of_pipeline(pipeline, name))
        return
    for key, model in parts.items():
        model.add_adapter(peft.LoraConfig(**config, target_modules=targets[key], init_lora_weights=False))
    theirs = of_pipeline(pipeline, name)
    states = {f"{key}_lora_layers": peft.get_peft_model_state_dict(model) for key, model in parts.items()}
    metadata = {f"{key}_lora_adapter_metadata": model.peft_config["default"].to_dict() for key, model in parts.items()}
    pipeline.save_lora_weights(tmp_path / "lora", **states, **metadata)
    weights.attach_file(family, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert same(of_family(family), theirs)
