"""Composing: search path, defaults, overrides, interpolation, origins, and what is said when it cannot be done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hcpdiff.config.loading import find, leaves, load, shipped_folder, to_yaml
from hcpdiff.config.mistakes import ConfigError


def error_of(path: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_a_file_in_any_folder_inherits_the_shipped_ones(shipped):
    shipped("elsewhere/my.yaml", "defaults:\n  - lora\n  - override model: big\nname: my\ntrain: {tags: [c]}\n")
    config = load("elsewhere/my.yaml")
    assert config.tree == {
        "seed": 1,
        "exp_dir": "exps/my",
        "name": "my",
        "model": {"_target_": "toybox.Square", "side": 9.0},
        "train": {"steps": 100, "tags": ["c"]},
    }


def test_its_own_folder_comes_before_the_shipped_ones(shipped):
    shipped("elsewhere/model/big.yaml", "side: 3.0\n")
    shipped("elsewhere/my.yaml", "defaults: [{model: big}]\n")
    assert load("elsewhere/my.yaml")["model"] == {"side": 3.0}


def test_a_package_puts_a_file_where_it_is_needed(shipped):
    shipped("my.yaml", "defaults:\n  - /model/big@train.shape\n  - /model/square@_here_\n")
    assert load("my.yaml").tree == {
        "train": {"shape": {"_target_": "toybox.Square", "side": 9.0}},
        "_target_": "toybox.Square",
        "side": 2.0,
    }


def test_booleans_are_true_and_false_only_so_on_and_no_are_words(write):
    write("my.yaml", "on: off\nyes: no\nfine: true\nrate: 1e-4\n")
    assert load("my.yaml").tree == {"on": "off", "yes": "no", "fine": True, "rate": 1e-4}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=7", "train.steps", 7),
        ("train.new.deep=1e-4", "train.new.deep", 1e-4),
        ("+train.other=x", "train.other", "x"),
        ("train.tags=[c,d]", "train.tags[1]", "d"),
        ("train.tags.1=z", "train.tags[1]", "z"),
        ("train.ema={decay: 0.5}", "train.ema.decay", 0.5),
        ("name='a, b = c'", "name", "a, b = c"),
    ],
)
def test_an_override_sets_a_value_and_is_its_origin(shipped, override, key, value):
    found = {k: (v, str(origin)) for k, v, origin in leaves(load("shipped/lora.yaml", [override]))}
    assert found[key] == (value, "override")


def test_a_group_can_be_chosen_on_the_command_line_whether_or_not_a_default_has_it(shipped):
    shipped("plain.yaml", "name: x\n")
    for name in ("shipped/lora.yaml", "plain.yaml"):
        assert load(name, ["model=big"])["model"]["side"] == 9.0


def test_a_key_can_be_deleted_on_the_command_line(shipped):
    assert "tags" not in load("shipped/lora.yaml", ["~train.tags"])["train"]


def test_origins_are_the_lines_that_set_a_value_last(shipped):
    shipped("my.yaml", "defaults: [lora]\nname: my\ntrain:\n  tags:\n    - c\n  steps: 3\n")
    origins = {key: str(origin) for key, _, origin in leaves(load("my.yaml", ["seed=5"]))}
    assert origins == {
        "seed": "override",
        "exp_dir": "shipped/base/train.yaml:3",
        "train.steps": "my.yaml:6",
        "train.tags[0]": "my.yaml:5",
        "model._target_": "shipped/model/square.yaml:1",
        "model.side": "shipped/model/square.yaml:2",
        "name": "my.yaml:2",
    }


def test_interpolations_and_the_two_resolvers(write):
    write(
        "my.yaml",
        """
        name: a
        copy: ${name}-b
        whole: ${train}
        area: ${pixels:1024,512}
        when: ${now:}
        again: ${now:}
        year: ${now:%Y}
        train: {steps: 3}
        """,
    )
    tree = load("my.yaml").tree
    assert tree["copy"] == "a-b"
    assert tree["whole"] == {"steps": 3}
    assert tree["area"] == 1024 * 512
    assert re.fullmatch(r"\d{4}(-\d\d){5}", tree["when"])
    assert tree["when"] == tree["again"]
    assert re.fullmatch(r"\d{4}", tree["year"])


def test_every_interpolation_that_leads_nowhere_is_found(write):
    write("my.yaml", "a: ${b}\nb: ${a}\nc: {d: '${c}'}\ntrain: {steps: 1}\ne: ${train.stesp}\nf: ???\ng: ${zzzz}\n")
    assert [str(mistake) for mistake in load("my.yaml").mistakes] == [
        "my.yaml:1: a: ${b} points back at itself; break the cycle",
        "my.yaml:2: b: ${a} points back at itself; break the cycle",
        "my.yaml:3: c.d: ${c} points back at itself; break the cycle",
        "my.yaml:5: e: ${train.stesp} points at nothing; did you mean 'train.steps'?",
        "my.yaml:6: f: has no value yet; set it",
        "my.yaml:7: g: ${zzzz} points at nothing",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "a: b: c",
            "my.yaml:1:5: broken YAML: a second ':' in one line, or wrong indentation; "
            "put text that contains ': ' in quotes",
        ),
        ("a: 1\na: 2", "my.yaml:2:1: broken YAML: duplicate key a; keep one of the two"),
        ("a: [1\nb: 2", "my.yaml:2:2: broken YAML: expected ',' or ']', but got ':'"),
        (
            "a: @b",
            "my.yaml:1:4: broken YAML: found character '@' that cannot start any token; indent with spaces, and put "
            "text that starts with a special character in quotes",
        ),
        ("- a", "my.yaml: a config is made of `key: value` lines"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "my.yaml:1:4: broken YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
        ("defaults: [my]", "my.yaml: defaults: the file inherits itself; rename it, or remove it from its defaults"),
        ("defaults: lora", "my.yaml:1: defaults: is a list of files; start each with '- '"),
        ("defaults:\n  - lorra", "my.yaml:2: defaults: there is no config 'lorra'; use one of lora"),
        ("defaults:\n  - model: bgi", "my.yaml:2: defaults: there is no 'bgi' in 'model'; use one of big, square"),
        ("defaults:\n  - base/trian", "my.yaml:2: defaults: there is no 'trian' in 'base'; use one of train"),
        (
            "defaults:\n  - modle: big",
            "my.yaml:2: defaults: there is no config 'modle/big', nor a folder 'modle'; did you mean 'model'?",
        ),
        (
            "defaults:\n  - lora\n  - override modle: big",
            "my.yaml:3: defaults: no default before it chooses 'modle', so there is nothing to override; "
            "did you mean 'model'?",
        ),
        (
            "defaults:\n  - lora\n  - overide model: big",
            "my.yaml:3: defaults[1]: 'overide' means nothing here; did you mean 'override'?",
        ),
        (
            "defaults:\n  - lora\n  - model: big",
            "my.yaml:3: defaults: 'model' is chosen twice; write `- override /model: ...` for the one that counts, "
            "as the last default",
        ),
        (
            "defaults: [{a: b, c: d}]",
            "my.yaml:1: defaults[0]: is not `file`, `group: option` or `override group: option`",
        ),
        ("hydra: {searchpath: ['pkg://evil']}", "my.yaml:1: hydra: is no section of a config; remove it"),
    ],
)
def test_what_cannot_be_composed_is_said_with_its_place(shipped, text, line):
    shipped("my.yaml", text)
    assert error_of("my.yaml") == line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("steps", "override: steps: is not `key=value`"),
        ("name=a, b", "override: name: is it a list or a text? use 'name=[a, b]' or 'name=\"a, b\"'"),
        ("name=a{b", "override: name: the value 'a{b' needs quotes of its own: 'name=\"a{b\"'"),
        ("name=a=b", "override: name: the value 'a=b' needs quotes of its own: 'name=\"a=b\"'"),
        ("model=bgi", "override: there is no 'bgi' in 'model'; use one of big, square"),
        ("~train.emma", "override: ~train.emma: there is nothing of this name to delete"),
        ("hydra.searchpath=[x]", "override: hydra.searchpath: is no setting of hcpdiff; remove it"),
    ],
)
def test_a_wrong_override_is_said_with_what_to_type(shipped, override, line):
    assert error_of("shipped/lora.yaml", override) == line


def test_all_wrong_overrides_are_said_at_once(shipped):
    assert len(error_of("shipped/lora.yaml", "a", "b=c,d", "seed=1").splitlines()) == 2


def test_a_missing_file_names_close_ones(shipped):
    assert error_of("lroa.yaml") == "no config at lroa.yaml; did you mean lora?"
    assert error_of("zzz.yaml") == "no config at zzz.yaml; hcpdiff ships lora"


def test_a_shipped_config_is_found_where_there_is_no_such_file(shipped):
    assert find("cfgs/lora.yaml") == find("lora") == Path.cwd() / "shipped" / "lora.yaml"


def test_a_config_must_end_in_yaml(write):
    write("my.yml", "a: 1")
    assert error_of("my.yml") == "my.yml: the name of a config ends in .yaml; rename it"


def test_the_shipped_folder_is_that_of_the_checkout_or_of_the_wheel():
    assert shipped_folder().name == "cfgs"


def test_what_is_saved_loads_back_to_the_same(write):
    write(
        "my.yaml",
        r"""
        on: "1e-4"
        texts: ["yes", "null", "12", "a: b", " x ", '\${a} \\\${b} ${name}', "é 图", "two\nlines", "", "~"]
        numbers: [1, 1.5, 1e-8, -3, .inf]
        others: [true, null, [], {}]
        path: ${name}/x
        name: n
        5: a number as a key
        """,
    )
    config = load("my.yaml")
    assert not config.mistakes
    assert config["texts"][5] == r"${a} \${b} n"
    write("again.yaml", to_yaml(config))
    assert load("again.yaml").tree == config.tree


def test_loading_leaves_hydra_of_a_notebook_alone(write):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    write("my.yaml", "a: 1")
    write("theirs.yaml", "b: 2")
    with initialize_config_dir(str(Path.cwd()), version_base="1.2"):
        assert load("my.yaml").tree == load("my.yaml").tree == {"a": 1}
        assert compose("theirs") == {"b": 2}
    assert not GlobalHydra.instance().is_initialized()


def test_importing_the_package_and_help_need_neither_hydra_nor_torch():
    code = "import sys, hcpdiff.config; print([m for m in ('hydra', 'omegaconf', 'torch', 'yaml') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_replace_drops_what_inherited_files_say_of_a_group(shipped):
    shipped("my.yaml", "defaults: [lora]\nmodel: {_target_: toybox.Line, length: 1, _replace_: true}\n")
    config = load("my.yaml")
    assert config["model"] == {"_target_": "toybox.Line", "length": 1}
    assert str(config.origin(("model", "side"))) == "my.yaml:2"
    shipped("my.yaml", "defaults: [lora]\nmodel: {side: 1, _replace_: false}\nnew: {deep: {_replace_: true, a: 1}}\n")
    assert load("my.yaml")["model"] == {"_target_": "toybox.Square", "side": 1}
    assert load("my.yaml")["new"] == {"deep": {"a": 1}}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model={_replace_: true, _target_: toybox.Line, length: 1}"],
        ["model.length=1", "model._replace_=true", "model._target_=toybox.Line"],
    ],
)
def test_replace_drops_what_files_say_of_a_group_in_overrides_too(shipped, overrides):
    shipped("my.yaml", "defaults: [lora]\n")
    config = load("my.yaml", overrides)
    assert config["model"] == {"_target_": "toybox.Line", "length": 1}
    assert str(config.origin(("model", "length"))) == "override"
    assert load("my.yaml", ["model._replace_=false", "model.side=3"])["model"] == {
        "_target_": "toybox.Square",
        "side": 3,
    }


def test_replace_in_an_override_may_stand_deeper_and_is_true_or_false(shipped):
    shipped("my.yaml", "a: {b: {c: 1, d: 2}, e: 3}\n")
    assert load("my.yaml", ["a={b: {_replace_: true, f: 4}}"])["a"] == {"b": {"f": 4}, "e": 3}
    assert load("my.yaml", ["new._replace_=true", "new.x=1"])["new"] == {"x": 1}
    assert error_of("my.yaml", "a._replace_=1") == "override: a._replace_: is true or false"


def test_what_is_saved_can_keep_its_interpolations(write, monkeypatch):
    monkeypatch.setenv("WHO", "me")
    write(
        "my.yaml",
        r"""
        name: n
        exp_dir: exps/${name}
        steps: 10
        schedule: {steps: '${steps}', note: '\${steps}', area: '${pixels:2,3}'}
        list: ['${steps}', b]
        copy: ${schedule}
        time: '${name}-${now:}'
        who: ${oc.env:WHO}
        """,
    )
    config = load("my.yaml", ["steps=20"])
    assert not config.mistakes
    write("again.yaml", to_yaml(config, interpolations=True))
    monkeypatch.setenv("WHO", "another")
    assert load("again.yaml").tree == config.tree
    other = load("again.yaml", ["name=m", "steps=30"])
    assert (other["exp_dir"], other["schedule"]["steps"], other["list"]) == ("exps/m", 30, [30, "b"])
    assert other["copy"] == {"steps": 30, "note": "${steps}", "area": 6}


@pytest.mark.parametrize("name", ["overrides", "trust"])
def test_a_text_for_a_list_is_a_mistake_and_not_one_for_each_letter(write, name):
    write("my.yaml", "a: 1")
    with pytest.raises(ConfigError, match=rf"^{name}: a text is not a list; use \['train\.steps=2'\]$"):
        load("my.yaml", **{name: "train.steps=2"})
