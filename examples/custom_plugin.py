"""Two plugins of your own: a skip connection between layers, and another activation function.

    python examples/custom_plugin.py

In a config, name the class, and pass `--trust custom_plugin`:

    plugins: {swap: {_target_: custom_plugin.ActivationSwap, on: text_encoders.clip_l, layers: ['re:.*mlp'], lr: 1e-2}}
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcpdiff.plugins import PluginBlock, PluginSpec, WrapPluginBlock, attach


class ResidualSkip(PluginBlock):
    """Adds what one layer gives to what a later one gives, through a learned matrix that starts at zero."""

    def __init__(self, source: nn.Module, target: nn.Module, *, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, source: Tensor, value: Tensor) -> Tensor:
        return value + self.mix(source.to(self.mix.weight.dtype)).to(value.dtype)


class ActivationSwap(WrapPluginBlock):
    """Slides a GELU of any kind towards SiLU, as far as training likes."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host)
        self.share = nn.Parameter(torch.zeros(()))

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        return "GELU" in type(layer).__name__ and not list(layer.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(self.host(x), F.silu(x), self.share.to(x.dtype))


if __name__ == "__main__":
    model = nn.Module()
    model.denoiser = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    x = torch.randn(2, 8)
    before = model.denoiser(x)
    plugins = attach(
        model,
        {
            "skip": PluginSpec(ResidualSkip, from_layers=["0"], to_layers=["2"], options={"width": 8}),
            "swap": PluginSpec(ActivationSwap, layers=["1"]),
        },
    )
    print("unchanged by new plugins:", torch.equal(model.denoiser(x), before))
    print("weights to train:", {k: tuple(v.shape) for k, v in plugins.state_dict().items()})
