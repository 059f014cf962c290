"""LoHa and LoKr against LyCORIS' modules with the same tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hcpdiff.plugins import LoHa, LoKr, PluginSpec
from hcpdiff.plugins.attach import attach
from tests.plugins.test_lora import shake
from tests.plugins.toys import Family

wrapper = pytest.importorskip("lycoris.wrapper")

CASES: dict[str, tuple[type[Any], dict[str, Any], str, dict[str, Any]]] = {
    "loha": (LoHa, {"rank": 2, "alpha": 1}, "LohaModule", {}),
    "loha tucker": (LoHa, {"rank": 2, "alpha": 1, "tucker": True}, "LohaModule", {"use_tucker": True}),
    "lokr": (LoKr, {"rank": 1, "alpha": 2, "factor": 2}, "LokrModule", {"factor": 2, "lora_dim": 1, "alpha": 2}),
    "lokr whole": (LoKr, {"rank": None, "factor": 4}, "LokrModule", {"factor": 4, "full_matrix": True}),
}


@pytest.mark.parametrize("layer", [nn.Linear(8, 12), nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_outputs_and_gradients_equal_those_of_lycoris(case: str, layer: nn.Module, strength: float) -> None:
    plugin, options, kind, theirs_options = CASES[case]
    family = Family(nn.Sequential(copy.deepcopy(layer))).requires_grad_(False)
    group = attach(family, {"p": PluginSpec(plugin, layers=["0"], options=options)})
    shake(group)
    group.set_strength("p", strength)
    settings = {"multiplier": strength, "lora_dim": 2, "alpha": 1} | theirs_options
    theirs = getattr(wrapper, kind)("x", copy.deepcopy(layer), **settings)
    (ours,) = group.plugins("p").values()
    own, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert own.keys() == other.keys()
    with torch.no_grad():
        for name, parameter in other.items():
            parameter.copy_(own[name])
    x = torch.randn((3, 8) if isinstance(layer, nn.Linear) else (2, 8, 6, 6))
    outputs = family.denoiser(x), theirs(x)
    assert not torch.allclose(outputs[0], layer(x), atol=1e-2)
    assert torch.allclose(*outputs, atol=1e-5)  # fp32 sums in another order
    for output in outputs:
        output.square().mean().backward()
    for name, parameter in own.items():
        assert torch.allclose(parameter.grad, other[name].grad, atol=1e-5)  # type: ignore[arg-type]
