"""Plugins: adapters that are attached to a running model, in four kinds; LoRA and its kin, and ControlNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.plugins.attach import attach as attach
    from hcpdiff.plugins.base import MultiPluginBlock as MultiPluginBlock
    from hcpdiff.plugins.base import PluginBlock as PluginBlock
    from hcpdiff.plugins.base import SinglePluginBlock as SinglePluginBlock
    from hcpdiff.plugins.base import WrapPluginBlock as WrapPluginBlock
    from hcpdiff.plugins.controlnet import ControlNet as ControlNet
    from hcpdiff.plugins.dora import DoRA as DoRA
    from hcpdiff.plugins.group import PluginGroup as PluginGroup
    from hcpdiff.plugins.lora import LoRA as LoRA
    from hcpdiff.plugins.lycoris import LoHa as LoHa
    from hcpdiff.plugins.lycoris import LoKr as LoKr
    from hcpdiff.plugins.plugin import PluginInputs as PluginInputs
    from hcpdiff.plugins.spec import PluginSpec as PluginSpec
    from hcpdiff.plugins.weight_change import WeightChange as WeightChange

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "ControlNet": "hcpdiff.plugins.controlnet:ControlNet",
        "DoRA": "hcpdiff.plugins.dora:DoRA",
        "LoHa": "hcpdiff.plugins.lycoris:LoHa",
        "LoKr": "hcpdiff.plugins.lycoris:LoKr",
        "LoRA": "hcpdiff.plugins.lora:LoRA",
        "MultiPluginBlock": "hcpdiff.plugins.base:MultiPluginBlock",
        "PluginBlock": "hcpdiff.plugins.base:PluginBlock",
        "PluginGroup": "hcpdiff.plugins.group:PluginGroup",
        "PluginInputs": "hcpdiff.plugins.plugin:PluginInputs",
        "PluginSpec": "hcpdiff.plugins.spec:PluginSpec",
        "SinglePluginBlock": "hcpdiff.plugins.base:SinglePluginBlock",
        "WeightChange": "hcpdiff.plugins.weight_change:WeightChange",
        "WrapPluginBlock": "hcpdiff.plugins.base:WrapPluginBlock",
        "attach": "hcpdiff.plugins.attach:",
    },
)
