"""DoRA against PEFT on the same numbers, and our files in stock diffusers and PEFT."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from hcpdiff.formats import convert, reading
from hcpdiff.plugins import DoRA, PluginSpec
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.weights import attach_file, save
from tests.models.tiny import SHAPES, mmdit_inputs
from tests.models.tiny_unet import tiny_sd
from tests.parity.test_lora_peft import load_in_stock_pipeline, shake, theirs
from tests.plugins.toys import Family, mmdit_family

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

LAYERS = [
    (nn.Linear(6, 10), (2, 3, 6)),
    (nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 9, 7)),
    (nn.Conv2d(4, 8, 1, bias=False), (2, 4, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_forward_and_gradients_equal_pefts(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours_x, theirs_x = (x.clone().requires_grad_() for _ in range(2))
    family = Family(nn.Sequential(copy.deepcopy(layer))).requires_grad_(False)
    group = attach(family, {"p": PluginSpec(DoRA, layers=["0"], options={"rank": 3, "alpha": 2})})
    config = peft.LoraConfig(r=3, lora_alpha=2, target_modules=["0"], use_dora=True)
    model = peft.inject_adapter_in_model(config, nn.Sequential(copy.deepcopy(layer)))
    params = {name: p for name, p in model.named_parameters() if "lora" in name}
    with torch.no_grad():
        for key, tensor in group.plugin_state_dict("p").items():
            other = params[_theirs(key.removeprefix("denoiser."))]
            if "magnitude" in key:
                assert torch.allclose(other.flatten(), tensor.flatten()), "both start as the lengths of the rows"
                tensor.mul_(1.1)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.ndim)) * 0.2)
            other.copy_(tensor.view(other.shape))
    ours, theirs_out = family.denoiser(ours_x), model(theirs_x)
    assert (ours - layer(x)).abs().max() > 0.05
    assert torch.allclose(ours, theirs_out, atol=1e-6)  # for values around 1: fp32 sums in another order
    for out in (ours, theirs_out):
        out.square().mean().backward()
    for name, own in group.plugins("p")["denoiser.0"].named_parameters():
        assert own.grad is not None
        assert torch.allclose(own.grad, params[_theirs(f"0.{name}")].grad.view(own.shape), atol=1e-6)
    assert ours_x.grad is not None
    assert theirs_x.grad is not None
    assert torch.allclose(ours_x.grad, theirs_x.grad, atol=1e-6)


def _theirs(key: str) -> str:
    return f"{key}.default.weight" if key.endswith("vector") else key.replace(".weight", ".default.weight")


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_our_file_does_in_the_stock_pipeline_what_it_does_here(tmp_path: Path, alpha: float | None) -> None:
    family = mmdit_family()
    family.architecture = "sd3"  # pyright: ignore[reportAttributeAccessIssue]
    inputs = mmdit_inputs(family.denoiser.config)
    transformer = diffusers.SD3Transformer2DModel(**SHAPES["sd3-medium"])
    transformer.load_state_dict(family.denoiser.state_dict())
    plain = family.denoiser(*inputs.values())
    layers = [r"re:transformer_blocks\.\d\.attn\.(?:to_[qkv]|to_out\.0|add_q_proj)", "transformer_blocks.1.ff"]
    spec = PluginSpec(DoRA, layers=layers, options={"rank": 4, "alpha": alpha}, overrides={"re:.*to_k": {"rank": 2}})
    group = attach(family, {"style": spec})
    shake(group)
    ours = family.denoiser(*inputs.values())
    save(group, "style", tmp_path / "style.safetensors")
    load_in_stock_pipeline(transformer, tmp_path / "style.safetensors")
    assert (ours - plain).abs().max() > 0.05
    assert torch.allclose(theirs(transformer, inputs), ours, atol=1e-5)  # fp32 over two blocks

    for to in ("peft", "lycoris"):
        again = mmdit_family()
        again.architecture = "sd3"  # pyright: ignore[reportAttributeAccessIssue]
        attach_file(again, convert.convert(tmp_path / "style.safetensors", to, family="sd3"))
        assert torch.allclose(again.denoiser(*inputs.values()), ours, atol=1e-5)


def test_a_unets_file_converts_to_one_that_stock_diffusers_reads(tmp_path: Path) -> None:
    pipeline = tiny_sd()
    family = Family(pipeline.unet, {"clip": pipeline.text_encoder}).requires_grad_(False).eval()
    family.architecture = "sd"  # pyright: ignore[reportAttributeAccessIssue]
    layers = [r"re:.*attn[12]\.to_[qkv]", r"re:.*resnets\.0\.conv1"]
    group = attach(family, {"style": PluginSpec(DoRA, layers=layers, options={"rank": 2, "alpha": 1})})
    shake(group)
    given = torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 5, 8)
    ours = pipeline.unet(*given).sample
    save(group, "style", tmp_path / "style.safetensors")
    group.detach()
    plain = pipeline.unet(*given).sample
    written = convert.convert(tmp_path / "style.safetensors", "diffusers", family="sd")
    pipeline.load_lora_weights(str(tmp_path), weight_name=written.name)
    assert not torch.allclose(plain, ours, atol=1e-3)
    assert torch.allclose(pipeline.unet(*given).sample, ours, atol=1e-5)  # fp32 over a UNet


def test_a_folder_that_peft_wrote_is_read(tmp_path: Path) -> None:
    block = nn.ModuleDict({"attn": nn.ModuleDict({name: nn.Linear(6, 6) for name in ("to_q", "to_k")})})
    model = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False, use_dora=True, use_rslora=True
    )
    wrapped = peft.PeftModel(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.2)
    wrapped.save_pretrained(tmp_path / "adapter")
    read = reading.read(tmp_path / "adapter", "sd3")
    for name in ("to_q", "to_k"):
        layer = wrapped.base_model.model.transformer_blocks[0]["attn"][name]
        weight = layer.base_layer.weight.detach().clone()
        layer.merge()
        ours = read.updates[f"denoiser.transformer_blocks.0.attn.{name}"].applied(weight)
        assert torch.allclose(ours, layer.base_layer.weight, atol=1e-6)
