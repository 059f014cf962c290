"""LoRA against PEFT on the same numbers, and our files in stock diffusers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.plugins import LoRA, PluginGroup, PluginSpec
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.weights import attach_file, save
from tests.models.tiny import SHAPES, mmdit_inputs
from tests.plugins.toys import Family, mmdit_args, mmdit_family

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-6  # absolute, for values around 1: fp32 sums in another order


def shake(group: PluginGroup) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in group.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 10), (2, 3, 6)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 9, 7)),
        (nn.Conv2d(4, 8, 1), (2, 4, 5, 5)),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_gradients_equal_pefts(layer: nn.Module, shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theirs_host = nn.Sequential(layer)
    family = Family(nn.Sequential(layer)).requires_grad_(False)
    group = attach(family, {"p": PluginSpec(LoRA, layers=["0"], options={"rank": 3, "alpha": 2, "bias": bias})})
    shake(group)
    ours = family.denoiser(x)
    ours.square().sum().backward()
    group.detach()

    config = peft.LoraConfig(r=3, lora_alpha=2, target_modules=["0"], lora_bias=bias)
    theirs_model = peft.inject_adapter_in_model(config, theirs_host)
    theirs_params = {k: p for k, p in theirs_model.named_parameters() if "lora" in k}
    with torch.no_grad():
        for key, tensor in group.plugin_state_dict("p").items():
            name = key.removeprefix("denoiser.").replace(".weight", ".default.weight").replace(".bias", ".default.bias")
            theirs_params[name].copy_(tensor)
    theirs = theirs_model(x)
    theirs.square().sum().backward()
    assert torch.allclose(ours, theirs, atol=TOLERANCE * 10, rtol=1e-5)
    for name, own in group.plugins("p")["denoiser.0"].named_parameters():
        other = theirs_params["0." + name.replace(".weight", ".default.weight").replace(".bias", ".default.bias")]
        assert torch.allclose(own.grad, other.grad, rtol=1e-4, atol=1e-4)  # sums over many pixels


def load_in_stock_pipeline(transformer: nn.Module, path: Path) -> None:
    """Put a LoRA's file on a transformer as the pipeline of SD3 does."""
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(["vae", "text_encoder", "text_encoder_2", "text_encoder_3"]),
        **dict.fromkeys(["tokenizer", "tokenizer_2", "tokenizer_3"]),
    )
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)


def theirs(transformer: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return transformer(
        hidden_states=inputs["noisy_latents"],
        timestep=inputs["timesteps"],
        encoder_hidden_states=inputs["tokens"],
        pooled_projections=inputs["pooled"],
        return_dict=False,
    )[0]


@pytest.mark.parametrize("alpha", [None, 2.0, 3.0], ids=["alpha=rank", "power of two", "not a power of two"])
def test_our_file_loads_in_the_stock_pipeline_with_equal_outputs(tmp_path: Path, alpha: float | None) -> None:
    family = mmdit_family()
    inputs = mmdit_inputs(family.denoiser.config)
    transformer = diffusers.SD3Transformer2DModel(**SHAPES["sd3-medium"])
    transformer.load_state_dict(family.denoiser.state_dict())
    plain = family.denoiser(*inputs.values())
    spec = PluginSpec(
        LoRA,
        layers=[r"re:transformer_blocks\.\d\.attn\.(?:to_[qkv]|to_out\.0|add_q_proj)", "transformer_blocks.1.ff"],
        options={"rank": 4, "alpha": alpha},
        overrides={"re:.*to_k": {"rank": 2}},
    )
    group = attach(family, {"style": spec})
    shake(group)
    ours = family.denoiser(*inputs.values())
    save(group, "style", tmp_path / "style.safetensors")

    load_in_stock_pipeline(transformer, tmp_path / "style.safetensors")
    assert (ours - plain).abs().max() > 0.05
    assert torch.allclose(theirs(transformer, inputs), ours, atol=TOLERANCE, rtol=1e-5)

    again = mmdit_family()
    attached = attach_file(again, tmp_path / "style.safetensors", name="style")
    assert all(torch.equal(t, attached.state_dict()[k]) for k, t in group.state_dict().items())
    assert torch.equal(again.denoiser(*mmdit_args(again)), ours)


def test_our_file_of_a_text_encoder_loads_in_the_stock_pipeline(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(**sizes, vocab_size=50, projection_dim=16, bos_token_id=0, eos_token_id=2)
    torch.manual_seed(0)
    encoder = transformers.CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    family = Family(nn.Identity(), {"clip_l": copy.deepcopy(encoder)})
    ids = torch.tensor([[0, 5, 7, 2]])
    group = attach(
        family, {"words": PluginSpec(LoRA, on="text_encoders.clip_l", layers=[r"re:.*self_attn"], options={"rank": 2})}
    )
    shake(group)
    ours = family.text_encoders["clip_l"](ids).text_embeds
    save(group, "words", tmp_path / "words.safetensors")

    names = ["vae", "transformer", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"]
    pipeline = diffusers.StableDiffusion3Pipeline(
        text_encoder=encoder, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(names)
    )
    plain = encoder(ids).text_embeds
    weights = diffusers.StableDiffusion3Pipeline.lora_state_dict(
        str(tmp_path), weight_name="words.safetensors", return_lora_metadata=True
    )
    pipeline.load_lora_into_text_encoder(weights[0], None, encoder, prefix="text_encoder", metadata=weights[1])
    assert (ours - plain).abs().max() > 0.01
    assert torch.allclose(encoder(ids).text_embeds, ours, atol=1e-5)  # fp32 sums in another order
