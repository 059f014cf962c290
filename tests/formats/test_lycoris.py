"""LyCORIS' own LoRA of a whole UNet, read here. Skipped where lycoris-lora is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hcpdiff.formats.lora_files import Updates
from hcpdiff.formats.reading import read
from tests.models.tiny_unet import tiny_sd


def merged(unet: nn.Module, updates: Updates) -> dict[str, torch.Tensor]:
    """The weights with the updates in them."""
    weights = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    for layer, update in updates.items():
        weight = weights[f"{layer.removeprefix('denoiser.')}.weight"]
        weight += update.delta().view(weight.shape)
    return weights


def test_a_lora_of_lycoris_changes_the_same_weights_here(tmp_path: Path) -> None:
    wrapper = pytest.importorskip("lycoris.wrapper")
    unet = tiny_sd().unet.requires_grad_(False)
    plain = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    wrapper.LycorisNetwork.apply_preset({"enable_conv": True, "target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    network = wrapper.create_lycoris(unet, 1.0, linear_dim=4, linear_alpha=1, conv_dim=2, conv_alpha=3, algo="lora")
    network.apply_to()  # only then it has parameters
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    found = read(tmp_path / "x.safetensors", "sd")
    assert len(found.updates) > 30
    ours = merged(unet, found.updates)
    assert all(torch.equal(tensor, plain[key]) for key, tensor in unet.state_dict().items())
    network.restore()
    network.merge_to(1.0)
    theirs = unet.state_dict()
    changed = [key for key in plain if not torch.equal(theirs[key], plain[key])]
    assert len(changed) == len(found.updates)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5) for key in plain)  # fp32 sums in another order
