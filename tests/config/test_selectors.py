"""Layer selectors are checked against the model's own layers, without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from hcpdiff.config import sections
from hcpdiff.config.checking import check
from hcpdiff.config.loading import load


@pytest.fixture
def lines(write, monkeypatch):
    """What `check(selectors=True)` says of a config with a toy model."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toys"))
    monkeypatch.setitem(sections.SECTIONS, "model", "toymodel:Family")
    sections.annotation.cache_clear()

    def lines_of(text: str, path: str = "here") -> list[str]:
        write("my.yaml", f"model: {{_target_: toymodel.Family.from_pretrained, path: {path}}}\n{text}")
        return [str(mistake) for mistake in check(load("my.yaml", trust=["toymodel"]), selectors=True)]

    yield lines_of
    sections.annotation.cache_clear()


def plugin(**settings: str) -> str:
    text = "".join(f", {key}: {value}" for key, value in settings.items())
    return f"plugins:\n  style: {{_target_: hcpdiff.plugins.LoRA, rank: 2{text}}}"


def test_selectors_that_match_are_no_mistake(lines):
    assert lines(plugin(layers="['re:attn\\.to_.*']") + "\nfinetune:\n  - {layers: [attn.norm], lr: 1e-5}") == []


def test_a_selector_that_matches_nothing_is_one(lines):
    [line] = lines(plugin(layers="[attn.to_q, attn.to_kk]"))
    assert line.startswith("my.yaml:3: plugins.style.layers[1]: 'attn.to_kk'")
    assert "attn.to_k" in line.partition("'attn.to_kk'")[2]


def test_so_it_is_in_finetune(lines):
    [line] = lines("finetune:\n  - layers: ['re:.*nrom']")
    assert line.startswith("my.yaml:3: finetune[0].layers[0]: 're:.*nrom'")


def test_every_selector_is_looked_at(lines):
    assert len(lines(plugin(layers="[nowhere]") + "\nfinetune: [{layers: [nor_here]}, {layers: [attn.norm]}]")) == 2


def test_a_part_that_the_model_has_not(lines):
    [line] = lines(plugin(layers="[attn.to_q]", on="unet"))
    assert line == "my.yaml:3: plugins.style.on: the model has no part 'unet': the parts are denoiser, vae"


def test_a_model_that_is_not_there(lines):
    [line] = lines(plugin(layers="[attn.to_q]"), path="gone")
    assert line == "my.yaml:1: model.path: no config.json in gone; download the model"


def test_what_the_plugin_itself_refuses(lines):
    [line] = lines(plugin(layers="[attn.to_q]", lr="1e-4", train="false"))
    assert line.startswith("my.yaml:3: plugins.style.lr: ")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"layres": "[a]"},
            "plugins.style.layres: hcpdiff.plugins.LoRA takes no such argument; did you mean 'layers'?",
        ),
        ({"alhpa": "1"}, "plugins.style.alhpa: hcpdiff.plugins.LoRA takes no such argument; did you mean 'alpha'?"),
        ({"host": "1"}, "plugins.style.host: comes from hcpdiff when it runs; remove it"),
        (
            {"generator": "1"},
            "plugins.style.generator: hcpdiff.plugins.LoRA takes no such argument; it takes rank, alpha",
        ),
        (
            {"overrides": "{a: {rnak: 1}}"},
            "plugins.style.overrides.a.rnak: hcpdiff.plugins.LoRA takes no such argument; did you mean 'rank'?",
        ),
        ({"dropout": "often"}, "plugins.style.dropout: 'often' is not a number"),
    ],
)
def test_settings_of_a_plugin_and_of_its_place_are_checked_together(lines, settings, line):
    assert any(found.startswith(f"my.yaml:3: {line}") for found in lines(plugin(layers="[attn.to_q]", **settings)))


def test_a_plugin_needs_a_class_of_plugins(lines):
    assert lines("plugins:\n  style: {rank: 2}") == [
        "my.yaml:3: plugins.style: needs a `_target_`: the class of the plugin"
    ]
    assert lines("plugins:\n  style: {_target_: torch.nn.Linear}") == [
        "my.yaml:3: plugins.style._target_: torch.nn.Linear is not a plugin; name a class of hcpdiff.plugins"
    ]
    [line] = lines("plugins:\n  style: {_target_: hcpdiff.plugins.lora}")
    assert "is a module; use one of hcpdiff.plugins.lora.LoRA" in line
