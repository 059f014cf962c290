from __future__ import annotations

import pytest
from torch import nn

from hcpdiff.plugins import LoRA, PluginSpec
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.targets import LayerRef, find_layers
from tests.plugins.toys import Denoiser, Scaled, toy_family


def paths(*patterns: str, **options: object) -> list[str]:
    return [ref.path for ref in find_layers(Denoiser(), patterns, **options)]


def test_a_plain_path_is_one_layer_and_the_empty_path_is_the_model() -> None:
    model = Denoiser()
    assert find_layers(model, ["blocks.0.to_q"]) == [LayerRef("blocks.0.to_q", model.blocks[0].to_q)]
    assert find_layers(model, [""]) == [LayerRef("", model)]


def test_an_expression_matches_whole_paths_and_may_contain_colons() -> None:
    assert paths(r"re:blocks\.(?:0|2)\.to_(?:q|k)") == [
        "blocks.0.to_q",
        "blocks.0.to_k",
        "blocks.2.to_q",
        "blocks.2.to_k",
    ]
    assert paths(r"re:blocks\.\d") == ["blocks.0", "blocks.1", "blocks.2"]


def test_pre_hook_means_the_input_and_comes_before_re() -> None:
    refs = find_layers(Denoiser(), ["pre_hook:", r"pre_hook:re:blocks\.[01]", "out"])
    assert [(ref.path, ref.pre_hook) for ref in refs] == [
        ("", True),
        ("blocks.0", True),
        ("blocks.1", True),
        ("out", False),
    ]


def test_patterns_keep_their_order_and_name_a_layer_once() -> None:
    assert paths("out", r"re:blocks\.0\.to_.", "blocks.0.to_q") == ["out", "blocks.0.to_q", "blocks.0.to_k"]
    assert paths("out", "out", repeat=True) == ["out", "out"]


def test_a_container_stands_for_the_layers_inside_that_are_wanted() -> None:
    def is_linear(layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)

    inside = ["blocks.0.to_q", "blocks.0.to_k", "blocks.0.ff.0", "blocks.0.ff.2"]
    assert paths("blocks.0", takes=is_linear) == inside
    assert paths("blocks.0.ff", "blocks.0", "blocks.0.to_q", takes=is_linear) == [*inside[2:], *inside[:2]]


def test_a_shared_layer_is_found_by_either_name_and_taken_once() -> None:
    model = nn.Module()
    model.first = model.second = nn.Linear(2, 2)
    assert [ref.path for ref in find_layers(model, ["second"])] == ["second"]
    assert len(find_layers(model, ["first", "second"])) == 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.0.to_qq", r"layers\[0\]: 'blocks.0.to_qq' matches no layer of Denoiser; close names: blocks.0.to_q"),
        (r"re:blocks\.0\.to_kk", r"matches no layer of Denoiser; close names: blocks.0.to_k"),
        ("re:to_q", "matches no layer"),
        ("prehook:out", r"unknown prefix 'prehook:'; known are 'pre_hook:', 're:'.*close names: pre_hook:"),
        ("re:pre_hook:out", "matches no layer"),
        ("re:(", r"is no regular expression: missing \)"),
    ],
)
def test_what_matches_nothing_is_an_error_that_helps(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paths(pattern)


def test_the_key_and_the_place_in_the_list_are_named() -> None:
    with pytest.raises(ValueError, match=r"plugins\.style\.layers\[1\]: 'nothing'"):
        paths("out", "nothing", where="plugins.style.layers")
    with pytest.raises(ValueError, match=r"layers: the list is empty"):
        paths()
    with pytest.raises(ValueError, match=r"'out' is one string; write a list: \['out'\]"):
        find_layers(Denoiser(), "out")


def test_a_prefix_that_the_kind_does_not_take_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'pre_hook:out': 'pre_hook:' does not fit here; this takes 're:'"):
        paths("pre_hook:out", prefixes=("re:",))


def test_nothing_inside_that_can_take_the_plugin_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'blocks.0.ff.1' names only GELU, and nothing inside can take this plugin"):
        paths("blocks.0.ff.1", takes=lambda layer: isinstance(layer, nn.Linear))


def test_plugins_do_not_change_the_names_that_later_patterns_match() -> None:
    family = toy_family()
    attach(family, {"scaled": PluginSpec(Scaled, layers=[r"re:blocks\.\d"])})
    assert [ref.path for ref in find_layers(family.denoiser, [r"re:blocks\.\d\.to_q"])] == [
        "blocks.0.to_q",
        "blocks.1.to_q",
        "blocks.2.to_q",
    ]


def test_lora_takes_no_layer_that_is_never_called_or_that_it_cannot_merge() -> None:
    assert not LoRA.takes(nn.MultiheadAttention(4, 2).out_proj)
    assert not LoRA.takes(nn.Conv2d(4, 4, 3, groups=4))
    assert LoRA.takes(nn.Linear(2, 2))
    assert LoRA.takes(nn.Conv2d(4, 4, 3))
