"""From a config to objects, and the place of a failure."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hcpdiff.config.building import build
from hcpdiff.config.mistakes import ConfigError


def test_a_section_becomes_what_receives_it(config):
    import toybox

    train = build(
        config(
            """
            train:
              steps: 1e2
              betas: [0, 0.5]
              size: [4, 5, 6]
              out: a/b
              ema: {decay: '9e-1'}
              shape: {_target_: toybox.Square.of_area, area: 9}
              emas: {slow: {}}
              weights: {a: 1}
            """
        ),
        "train",
    )
    assert isinstance(train, toybox.Train)
    assert (train.steps, type(train.steps)) == (100, int)
    assert train.betas == (0, 0.5)
    assert train.size == (4, 5, 6)
    assert train.out == Path("a/b")
    assert train.ema == toybox.Ema(decay=0.9)
    assert train.shape.side == 3
    assert train.emas == {"slow": toybox.Ema()}
    assert train.weights == {"a": 1}


def test_functions_and_classes_for_something_to_call_leave_the_programs_arguments_open(config):
    text = """
    train:
      steps: 1
      optimizer: {_target_: toybox.Optimizer, lr: 0.5}
      loss: {_target_: toybox.loss, power: 3}
      guidance: {_target_: toybox.one_value}
    """
    train = build(config(text), "train")
    optimizer = train.optimizer([1.0])
    assert (optimizer.params, optimizer.lr) == ([1.0], 0.5)
    assert train.loss(5, 3) == 8
    assert train.guidance(7) == 7


def test_a_class_whose_objects_can_be_called_is_built(config):
    train = build(config("train: {steps: 1, loss: {_target_: toybox.Doubler, factor: 3}}"), "train")
    assert train.loss(1, 2) == 9


def test_partial_is_understood_where_no_type_says_it(toys):
    made = build({"_target_": "toybox.Optimizer", "_partial_": True, "lr": 1})
    assert isinstance(made, functools.partial)
    assert made([]).lr == 1


def test_a_torch_optimizer_gets_its_settings(config):
    node = {"_target_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.5, 0.6]}
    make = build(node, "train.optimizer", Callable[[list[Any]], torch.optim.Optimizer])
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["betas"] == (0.5, 0.6)
    assert type(optimizer.defaults["betas"]) is tuple


def test_a_mapping_of_sections_needs_no_target_and_may_have_one(config):
    import toybox

    data = build(config("data: {main: {width: 2}, other: {_target_: toybox.Child, depth: 3, height: 4}}"), "data")
    assert type(data["main"]) is toybox.Parent
    assert data["main"].size == (2, 1)
    assert type(data["other"]) is toybox.Child
    assert data["other"].size == (1, 4)


def test_a_key_below_a_section_can_be_built_alone(config):
    assert build(config("train: {steps: 1, shapes: [{_target_: toybox.Square}]}"), "train.shapes[0]").side == 1


def test_containers_are_plain(toys):
    import toybox

    made = build({"loggers": [{"_target_": "toybox.Square"}], "names": {"a": [1]}})
    assert type(made) is dict
    assert type(made["loggers"]) is list
    assert isinstance(made["loggers"][0], toybox.Square)


def test_a_target_that_two_places_share_is_built_for_each(config):
    made = build(
        config("model: {_target_: toybox.Square}\ndata: {}\ntrain: {steps: 1, shapes: ['${model}', '${model}']}"),
        "train",
    )
    assert made.shapes[0] is not made.shapes[1]


def test_a_failure_names_file_key_and_argument_and_keeps_its_cause(config):
    with pytest.raises(ConfigError) as caught:
        build(config("train:\n  steps: 1\n  shape:\n    _target_: toybox.Square\n    side: 101"), "train")
    assert str(caught.value) == "my.yaml:5: train.shape.side: 101 does not fit on the table; use 100 or less"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_failure_of_another_kind_says_so(config):
    with pytest.raises(ConfigError) as caught:
        build(config("train:\n  steps: 1\n  loggers:\n    - _target_: toybox.broken\n      reason: it rains"), "train")
    assert str(caught.value) == "my.yaml:4: train.loggers[0]: toybox.broken: RuntimeError: it rains"


def test_mistakes_stop_a_build_before_anything_is_made(config):
    with pytest.raises(ConfigError) as caught:
        build(config("train: {stpes: 1, loggers: [{_target_: toybox.broken}], note: '${no}'}"), "train")
    assert len(caught.value.mistakes) == 3


def test_a_node_of_its_own_has_no_file(toys):
    with pytest.raises(ConfigError, match=r"^x\.lnegth: toybox\.Line takes no such argument; did you mean 'length'\?"):
        build({"_target_": "toybox.Line", "lnegth": 1}, "x")


def test_building_warns_of_nothing(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(config("train: {steps: 1}"), "train")
