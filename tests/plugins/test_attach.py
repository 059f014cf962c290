"""Plugins that are attached to more than one part of a model."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from hcpdiff.plugins import LoRA, PluginSpec
from hcpdiff.plugins.attach import attach


def test_one_plugin_works_on_several_parts_of_a_family() -> None:
    family = nn.Module()
    family.denoiser = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    family.text = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4))})
    spec = PluginSpec(LoRA, on=["denoiser", "text"], layers=["0", r"re:a\.\d"], options={"rank": 2})
    group = attach(family, {"style": spec})
    assert list(group.plugins("style")) == ["denoiser.0", "text.a.0"]
    with pytest.raises(ValueError, match=r"plugins\.style\.layers\[1\]: 'zz' matches no layer"):
        attach(family, {"style": dataclasses.replace(spec, layers=["0", "zz"])})
    with pytest.raises(ValueError, match=r"plugins\.style\.on: 'txt' is no part of Module; close names: text"):
        attach(family, {"style": dataclasses.replace(spec, on=["denoiser", "txt"])})
