"""Each kind of mistake with its exact line."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("trian: {steps: 1}", "my.yaml:1: trian: there is no such section; did you mean 'train'?"),
        (
            "hooks: 1",
            "my.yaml:1: hooks: there is no such section; the sections are name, exp_dir, seed, model, train, data",
        ),
        ("train: {stpes: 1}", "my.yaml:1: train.stpes: train takes no such argument; did you mean 'steps'?"),
        ("train: {lr: 1}", "my.yaml:1: train: train needs 'steps'"),
        ("train: {steps: 1, ema: {deacy: 0.9}}", "my.yaml:1: train.ema.deacy: train.ema takes no such argument; did you mean 'decay'?"),
        (
            "train: {steps: 1, emas: {slow: {deacy: 0.9}}}",
            "my.yaml:1: train.emas.slow.deacy: train.emas.slow takes no such argument; did you mean 'decay'?",
        ),
        (
            "data: {main: {wdith: 1}}",
            "my.yaml:1: data.main.wdith: data.main takes no such argument; did you mean 'width'?",
        ),
        (
            "train:\n  steps: 1\n  optimizer:\n    _target_: torch.optim.AdamW\n    weight_decy: 0.1",
            "my.yaml:5: train.optimizer.weight_decy: torch.optim.AdamW takes no such argument; did you mean 'weight_decay'?",
        ),
        (
            "train: {steps: 1, optimizer: {_target_: toybox.Optimizer, foo: 1}}",
            "my.yaml:1: train.optimizer.foo: toybox.Optimizer takes no such argument; it takes lr, decay",
        ),
        (
            "train: {steps: 1, optimizer: {_target_: toybox.Optimizer, params: [1]}}",
            "my.yaml:1: train.optimizer.params: comes from hcpdiff when it runs; remove it",
        ),
        ("train: {steps: 1, loss: {_target_: toybox.needy}}", "my.yaml:1: train.loss: toybox.needy needs 'scale'"),
        (
            "train: {steps: 1, loss: {_target_: toybox.one_value}}",
            "my.yaml:1: train.loss._target_: toybox.one_value cannot be used here: it gets 2 values, but takes 1",
        ),
        (
            "train: {steps: 1, shape: {_target_: toybox.Square, _args_: [1.0], side: 2.0}}",
            "my.yaml:1: train.shape.side: is in `_args_` already; remove it",
        ),
        (
            "train: {steps: 1, shape: {_target_: toybox.Square, _args_: [1.0, 2.0]}}",
            "my.yaml:1: train.shape._args_: has 2 values, but toybox.Square takes 1 without a name",
        ),
        (
            "train: {steps: 1, optimizer: {_target_: toybox.Optimizer, _args_: [1]}}",
            "my.yaml:1: train.optimizer._args_: the first arguments of toybox.Optimizer come from hcpdiff when it runs; "
            "name yours",
        ),
        (
            "train: {steps: 1, shape: {_target_: toybox.Sqare}}",
            "my.yaml:1: train.shape._target_: 'toybox.Sqare' does not exist: toybox has no 'Sqare'; did you mean 'Square'?",
        ),
        (
            "train: {steps: 1, shape: {_target_: toybox.Square.of_aera}}",
            "my.yaml:1: train.shape._target_: 'toybox.Square.of_aera' does not exist: Square has no 'of_aera'; "
            "did you mean 'of_area'?",
        ),
        ("train: {steps: 1, shape: {_target_: toybox.Line, length: 1}}", "my.yaml:1: train.shape._target_: toybox.Line is not a Shape"),
        (
            "train: {steps: 1, shape: {_targe_: toybox.Square}}",
            "my.yaml:1: train.shape._targe_: there is no such key; did you mean '_target_'?",
        ),
        (
            "train: {steps: 1, loggers: [{target_: toybox.Square}]}",
            "my.yaml:1: train.loggers[0].target_: there is no such key; did you mean '_target_'?",
        ),
        ("train: {steps: 1, shape: {side: 1}}", "my.yaml:1: train.shape: needs a `_target_` that says which one is meant"),
        ("train: {steps: 1, loss: mse}", "my.yaml:1: train.loss: 'mse' is not something to call: `_target_: ...` and its arguments"),
        ("train: {steps: many}", "my.yaml:1: train.steps: 'many' is not a whole number"),
        ("train: {steps: '10'}", "my.yaml:1: train.steps: '10' is not a whole number; write 10 without quotes"),
        ("train: {steps: 1.5}", "my.yaml:1: train.steps: 1.5 is not a whole number"),
        ("train: {steps: true}", "my.yaml:1: train.steps: true is not a whole number"),
        ("train: {steps: null}", "my.yaml:1: train.steps: null is not a whole number"),
        ("train: {steps: [1]}", "my.yaml:1: train.steps: a list is not a whole number"),
        ("train: {steps: {a: 1}}", "my.yaml:1: train.steps: a group of `name: value` lines is not a whole number"),
        ("train: {steps: 1, shuffle: yes}", "my.yaml:1: train.shuffle: 'yes' is not true or false"),
        ("train: {steps: 1, note: 12}", "my.yaml:1: train.note: 12 is not text; write '12' in quotes"),
        ("train: {steps: 1, tags: [a, 1]}", "my.yaml:1: train.tags[1]: 1 is not text; write '1' in quotes"),
        ("train: {steps: 1, tags: a}", "my.yaml:1: train.tags: 'a' is not a list of text"),
        ("train: {steps: 1, weights: {a: b}}", "my.yaml:1: train.weights.a: 'b' is not a number"),
        ("train: {steps: 1, weights: [1]}", "my.yaml:1: train.weights: a list is not `name: value` lines"),
        ("train: {steps: 1, betas: [0.9]}", "my.yaml:1: train.betas: has 1 values; 2 are needed"),
        ("train: {steps: 1, betas: 0.9}", "my.yaml:1: train.betas: 0.9 is not a list of 2 numbers"),
        ("train: {steps: 1, size: [8, a]}", "my.yaml:1: train.size[1]: 'a' is not a whole number"),
        ("train: {steps: 1, ema: 0.9}", "my.yaml:1: train.ema: 0.9 is not `name: value` lines"),
        (
            "train: {steps: 1, precision: bf61}",
            "my.yaml:1: train.precision: 'bf61' is not one of fp32, bf16, fp16; did you mean 'bf16'?",
        ),
        ("train: {steps: 1, checkpointing: some}", "my.yaml:1: train.checkpointing: 'some' is not one of none, all or a whole number"),
        ("train: {steps: 1, checkpointing: 0}", "my.yaml:1: train.checkpointing: 0 is out of range; use 1 or more"),
        ("train: {steps: 0}", "my.yaml:1: train.steps: 0 is out of range; use 1 or more"),
        (
            "train: {steps: 1, ema: {decay: 1.0}}",
            "my.yaml:1: train.ema.decay: 1.0 is out of range; use 0 or more and less than 1",
        ),
        (
            "train: {steps: 1, optimizer: {_target_: toybox.Optimizer, decay: 2}}",
            "my.yaml:1: train.optimizer.decay: 2 is out of range; use 0 to 1",
        ),
        ("train: {steps: 1, folder: nowhere}", "my.yaml:1: train.folder: no folder at nowhere; set train.folder to one that exists"),
        ("train: {steps: 1, folder: my.yaml}", "my.yaml:1: train.folder: no folder at my.yaml; did you mean 'my.yaml'?"),
        ("train: {steps: '${trian.x}'}", "my.yaml:1: train.steps: ${trian.x} points at nothing; did you mean 'train'?"),
        ("train: {steps: '${no:1}'}", "my.yaml:1: train.steps: there is no resolver no for ${no:1}; use ${now:}, ${pixels:h,w} or ${oc.env:NAME}"),
        ("train: {steps: '${train.steps}'}", "my.yaml:1: train.steps: ${train.steps} points back at itself; break the cycle"),
        ("train:\n  steps: ???", "my.yaml:2: train.steps: has no value yet; set it"),
        ("model: {_target_: os.getcwd}", "my.yaml:1: model._target_: 'os.getcwd' is refused: os is never trusted"),
        (
            "model: {_target_: toybox.Square, trust_remote_code: true}",
            "my.yaml:1: model.trust_remote_code: toybox.Square takes no such argument; it takes side",
        ),
        (
            "train: {steps: 1, loggers: [{_target_: transformers.AutoConfig.from_pretrained, trust_remote_code: true}]}",
            "my.yaml:1: train.loggers[0].trust_remote_code: True is refused: it can run code that comes with a model",
        ),
    ],
)
def test_each_mistake_has_its_line(mistakes, text, line):
    assert line in mistakes(text)


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
    assert mistakes("train: {steps: 1, loggers: [{_target_: toybox.sink, fourth: 2}, {_target_: toybox.Child, x: 1}]}") == [
        "my.yaml:1: train.loggers[0].fourth: toybox.sink takes no such argument; it takes first, second, third",
        "my.yaml:1: train.loggers[1].x: toybox.Child takes no such argument; it takes depth, width, height",
    ]


def test_missing_sections_can_be_asked_for(config):
    from hcpdiff.config.checking import check

    lines = [str(mistake) for mistake in check(config("name: x"), needs=["train"])]
    assert lines == ["my.yaml: train: is missing; add this section"]
