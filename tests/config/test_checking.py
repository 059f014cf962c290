"""Each kind of mistake with its exact line."""

from __future__ import annotations

import pytest

from hcpdiff.config.checking import check
from hcpdiff.config.loading import load

# (what stands in `train: {steps: 1, ...}`, the mistake without `my.yaml:1: train.`)
IN_TRAIN = [
    ("ema: {deacy: 0.9}", "ema.deacy: train.ema takes no such argument; did you mean 'decay'?"),
    ("emas: {slow: {deacy: 0.9}}", "emas.slow.deacy: train.emas.slow takes no such argument; did you mean 'decay'?"),
    (
        "optimizer: {_target_: toybox.Optimizer, foo: 1}",
        "optimizer.foo: toybox.Optimizer takes no such argument; it takes lr, decay",
    ),
    (
        "optimizer: {_target_: toybox.Optimizer, params: [1]}",
        "optimizer.params: comes from hcpdiff when it runs; remove it",
    ),
    ("loss: {_target_: toybox.needy}", "loss: toybox.needy needs 'scale'"),
    (
        "loss: {_target_: toybox.one_value}",
        "loss._target_: toybox.one_value cannot be used here: it gets 2 values, but takes 1",
    ),
    ("shape: {_target_: toybox.Square, _args_: [1.0], side: 2.0}", "shape.side: is in `_args_` already; remove it"),
    (
        "shape: {_target_: toybox.Square, _args_: [1.0, 2.0]}",
        "shape._args_: has 2 values, but toybox.Square takes 1 without a name",
    ),
    (
        "optimizer: {_target_: toybox.Optimizer, _args_: [1]}",
        "optimizer._args_: the first arguments of toybox.Optimizer come from hcpdiff when it runs; name yours",
    ),
    (
        "shape: {_target_: toybox.Sqare}",
        "shape._target_: 'toybox.Sqare' does not exist: toybox has no 'Sqare'; did you mean 'Square'?",
    ),
    (
        "shape: {_target_: toybox.Square.of_aera}",
        "shape._target_: 'toybox.Square.of_aera' does not exist: Square has no 'of_aera'; did you mean 'of_area'?",
    ),
    ("shape: {_target_: toybox.Line, length: 1}", "shape._target_: toybox.Line is not a Shape"),
    ("shape: {_targe_: toybox.Square}", "shape._targe_: there is no such key; did you mean '_target_'?"),
    ("loggers: [{target_: toybox.Square}]", "loggers[0].target_: there is no such key; did you mean '_target_'?"),
    ("shape: {side: 1}", "shape: needs a `_target_` that says which one is meant"),
    ("loss: mse", "loss: 'mse' is not something to call: `_target_: ...` and its arguments"),
    ("shuffle: yes", "shuffle: 'yes' is not true or false"),
    ("note: 12", "note: 12 is not text; write '12' in quotes"),
    ("tags: [a, 1]", "tags[1]: 1 is not text; write '1' in quotes"),
    ("tags: a", "tags: 'a' is not a list of text; put it in brackets: ['a']"),
    ("weights: {a: b}", "weights.a: 'b' is not a number"),
    ("weights: [1]", "weights: a list is not `name: value` lines"),
    ("betas: [0.9]", "betas: has 1 values; 2 are needed"),
    ("betas: 0.9", "betas: 0.9 is not a list of 2 numbers"),
    ("size: [8, a]", "size[1]: 'a' is not a whole number"),
    ("ema: 0.9", "ema: 0.9 is not `name: value` lines"),
    ("precision: bf61", "precision: 'bf61' is not one of fp32, bf16, fp16; did you mean 'bf16'?"),
    ("checkpointing: some", "checkpointing: 'some' is not one of none, all or a whole number"),
    ("checkpointing: 0", "checkpointing: 0 is out of range; use 1 or more"),
    ("ema: {decay: 1.0}", "ema.decay: 1.0 is out of range; use 0 or more and less than 1"),
    ("optimizer: {_target_: toybox.Optimizer, decay: 2}", "optimizer.decay: 2 is out of range; use 0 to 1"),
    ("folder: nowhere", "folder: no folder at nowhere; set train.folder to one that exists"),
    ("folder: my.yam", "folder: no folder at my.yam; did you mean 'my.yaml'?"),
    ("folder: my.yaml", "folder: my.yaml is not a folder"),
    (
        "loggers: [{_target_: transformers.AutoConfig.from_pretrained, _args_: [x], trust_remote_code: true}]",
        "loggers[0].trust_remote_code: True is refused: it can run code that comes with a model",
    ),
]
# (a whole config, the mistake without `my.yaml:`)
ELSEWHERE = [
    ("trian: {steps: 1}", "1: trian: there is no such section; did you mean 'train'?"),
    ("hooks: 1", "1: hooks: there is no such section; the sections are name, exp_dir, seed, model, train, data"),
    ("train: {stpes: 1}", "1: train.stpes: train takes no such argument; did you mean 'steps'?"),
    ("train: {lr: 1}", "1: train: train needs 'steps'"),
    ("data: {main: {wdith: 1}}", "1: data.main.wdith: data.main takes no such argument; did you mean 'width'?"),
    (
        "train:\n  steps: 1\n  optimizer:\n    _target_: torch.optim.AdamW\n    weight_decy: 0.1",
        "5: train.optimizer.weight_decy: torch.optim.AdamW takes no such argument; did you mean 'weight_decay'?",
    ),
    ("train: {steps: many}", "1: train.steps: 'many' is not a whole number"),
    ("train: {steps: '10'}", "1: train.steps: '10' is not a whole number; write 10 without quotes"),
    ("train: {steps: 1.5}", "1: train.steps: 1.5 is not a whole number"),
    ("train: {steps: true}", "1: train.steps: true is not a whole number"),
    ("train: {steps: null}", "1: train.steps: null is not a whole number"),
    ("train: {steps: [1]}", "1: train.steps: a list is not a whole number"),
    ("train: {steps: {a: 1}}", "1: train.steps: a group of `name: value` lines is not a whole number"),
    ("train: {steps: 0}", "1: train.steps: 0 is out of range; use 1 or more"),
    ("train: {steps: '${trian.x}'}", "1: train.steps: ${trian.x} points at nothing; did you mean 'train'?"),
    (
        "train: {steps: '${no:1}'}",
        "1: train.steps: there is no resolver no for ${no:1}; use ${now:}, ${pixels:h,w} or ${oc.env:NAME}",
    ),
    ("train: {steps: '${train.steps}'}", "1: train.steps: ${train.steps} points back at itself; break the cycle"),
    ("train:\n  steps: ???", "2: train.steps: has no value yet; set it"),
    ("model: {_target_: os.getcwd}", "1: model._target_: 'os.getcwd' is refused: os is never trusted"),
    (
        "model: {_target_: toybox.Square, trust_remote_code: true}",
        "1: model.trust_remote_code: toybox.Square takes no such argument; it takes side",
    ),
]


@pytest.mark.parametrize(("inside", "line"), IN_TRAIN)
def test_each_mistake_in_a_section_has_its_line(mistakes, inside, line):
    assert mistakes(f"train: {{steps: 1, {inside}}}") == [f"my.yaml:1: train.{line}"]


@pytest.mark.parametrize(("text", "line"), ELSEWHERE)
def test_each_mistake_has_its_line(mistakes, text, line):
    assert f"my.yaml:{line}" in mistakes(text)


def test_all_mistakes_are_found_at_once_in_the_order_of_the_config(mistakes):
    lines = mistakes(
        """
        nmae: x
        train:
          stpes: 1
          precision: bf61
          ema: {decay: 2}
        """
    )
    assert [line.split(":")[1] for line in lines] == ["1", "3", "4", "5", "2"]


def test_an_override_is_named_as_the_place_of_its_mistake(mistakes):
    lines = mistakes("train: {steps: 1, optimizer: {_target_: toybox.Optimizer}}", "train.optimizer.dceay=0.1")
    assert lines == ["override: train.optimizer.dceay: toybox.Optimizer takes no such argument; did you mean 'decay'?"]


@pytest.mark.parametrize(
    "text",
    [
        "train: {steps: 1e3}",  # a float that is whole
        "train: {steps: 1, ema: {decay: '9e-1'}}",
        "train: {steps: 1, ema: {decay: 0}}",
        "train: {steps: 1, betas: [0, 0.5], size: [1, 2, 3]}",
        "train: {steps: 1, checkpointing: 2}",
        "train: {steps: 1, checkpointing: all}",
        "train: {steps: 1, guidance: 3}",
        "train: {steps: 1, guidance: {_target_: toybox.one_value}}",
        "train: {steps: 1, loss: {_target_: toybox.Doubler, factor: 3}}",
        "train: {steps: 1, shape: {_target_: toybox.Square.of_area, area: 4}}",
        "train: {steps: 1, shapes: [{_target_: toybox.Square}]}",
        "train: {steps: 1, folder: ., out: a/b}",
        "train: {steps: 1, note: no}",  # a text, not false
        "train: {steps: 1, loggers: [{_target_: toybox.Child, width: 2, depth: 1}]}",
        "train: {steps: 1, loggers: [{_target_: toybox.sink, second: 2, third: 3}]}",
        "train: {steps: 1, loggers: [{target: anything, is: fine}]}",
        "data: {main: {width: 1}, other: {_target_: toybox.Child, depth: 2}}",
        "train: {steps: 1, optimizer: {_target_: torch.optim.AdamW, lr: 1e-4, betas: [0.9, 0.99], fused: null}}",
    ],
)
def test_what_fits_is_no_mistake(mistakes, text):
    assert mistakes(text) == []


def test_a_sink_takes_only_what_it_reads(mistakes):
    assert mistakes(
        "train: {steps: 1, loggers: [{_target_: toybox.sink, fourth: 2}, {_target_: toybox.Child, x: 1}]}"
    ) == [
        "my.yaml:1: train.loggers[0].fourth: toybox.sink takes no such argument; it takes first, second, third",
        "my.yaml:1: train.loggers[1].x: toybox.Child takes no such argument; it takes depth, width, height",
    ]


def test_missing_sections_can_be_asked_for(config):

    lines = [str(mistake) for mistake in check(config("name: x"), needs=["train"])]
    assert lines == ["my.yaml: train: is missing; add this section"]


def test_what_is_left_over_of_another_target_is_said_with_its_remedy(shipped, toys):
    shipped("my.yaml", "defaults: [lora]\nmodel:\n  _target_: toybox.Other\n")
    lines = [str(mistake) for mistake in check(load("my.yaml"))]
    assert lines == [
        "shipped/model/square.yaml:2: model.side: toybox.Other takes no such argument; "
        "add `_replace_: true` at my.yaml:3 to drop what other files set there"
    ]


def test_the_hint_for_a_target_changed_by_an_override_is_one_that_works(shipped, toys):
    shipped("my.yaml", "defaults: [lora]\n")
    changed = ["model._target_=toybox.Other"]
    [line] = [str(mistake) for mistake in check(load("my.yaml", changed)) if "side" in mistake.key]
    assert line.endswith("; add model._replace_=true to drop what files set there")
    assert load("my.yaml", [*changed, "model._replace_=true"])["model"] == {"_target_": "toybox.Other"}
