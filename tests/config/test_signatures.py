"""Signatures read as types, whatever way a library writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
import torch

from hcpdiff.config.building import build
from hcpdiff.config.kinds import call_arity, describe
from hcpdiff.config.mistakes import ConfigError
from hcpdiff.config.ranges import Range
from hcpdiff.config.signatures import signature


@pytest.fixture
def late(toys, monkeypatch):
    monkeypatch.setenv("HCPDIFF_TRUST", "toybox toylazy")
    return lambda **settings: build({"_target_": "toylazy.Late", **settings}, "x")


def test_types_that_are_imported_for_type_checkers_only_are_found_or_let_pass(late):
    made = late(call={"_target_": "toybox.loss", "power": 1}, folder="a", mode=7, anything=[1])
    assert made.call(3, 1) == 2
    assert made.folder == Path("a")


def test_and_still_checked_where_they_can_be(late):
    with pytest.raises(ConfigError, match=r"^x\.names: 3 is not a list of text$"):
        late(names=3)
    with pytest.raises(ConfigError, match=r"cannot be used here: it gets 2 values, but takes 1$"):
        late(call={"_target_": "toybox.one_value"})


def test_an_inherited_dataclass_is_read_in_the_module_that_wrote_it(late):
    with pytest.raises(ConfigError, match=r"^x\.decay: 2 is out of range"):
        build({"_target_": "toylazy.Heir", "decay": 2}, "x")


def test_arguments_of_base_classes_come_through_a_sink(toys):
    import toybox

    assert signature(toybox.Child).names == ["depth", "width", "height"]
    assert not any(argument.required for argument in signature(toybox.Child).arguments.values())


def test_torch_optimizers_have_their_types():
    arguments = signature(torch.optim.AdamW).arguments
    assert arguments["params"].by_position
    assert describe(arguments["betas"].annotation) == "a list of 2 values"
    assert describe(arguments["amsgrad"].annotation) == "true or false"


def test_what_is_written_in_c_takes_anything():
    assert not signature(torch.nn.functional.gelu).known


@pytest.mark.parametrize(
    ("annotation", "arity"),
    [
        (Callable[[int, str], float], 2),
        (Callable[[], float], 0),
        (Callable[..., float], -1),
        (Callable, -1),
        (Annotated[Callable[[int], int], Range(ge=1)], 1),
        (int, None),
        (list[Callable[[int], int]], None),
        (torch.nn.Module, None),
    ],
)
def test_how_many_values_the_program_gives(annotation, arity):
    assert call_arity(annotation) == arity


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Optional[bool], "true or false or null"),  # noqa: UP045
        (Literal["a", "b"] | int, "one of a, b or a whole number"),
        (Literal[False, "disk"], "one of false, disk"),
        (list[int], "a list of whole numbers"),
        (Sequence[str], "a list of text"),
        (list[Any], "a list"),
        (tuple[int, int], "a list of 2 whole numbers"),
        (tuple[int, str], "a list of 2 values"),
        (Mapping[str, int], "`name: value` lines"),
        (str | Path, "text or a path"),
        (Callable[[int], int], "something to call: `_target_: ...` and its arguments"),
    ],
)
def test_types_in_the_words_of_a_config(annotation, words):
    assert describe(annotation) == words


@pytest.mark.parametrize(
    ("limits", "good", "bad", "words"),
    [
        ({"ge": 1}, 1, 0, "0 is out of range; use 1 or more"),
        ({"gt": 0}, 0.1, 0, "0 is out of range; use more than 0"),
        ({"ge": 0, "le": 1}, 1, 1.5, "1.5 is out of range; use 0 to 1"),
        ({"lt": 5}, 4, 5, "5 is out of range; use less than 5"),
        ({"ge": 0, "lt": 1}, 0, float("nan"), "nan is out of range; use 0 or more and less than 1"),
        ({"ge": 1}, [1], [], "a length of 0 is out of range; use 1 or more"),
    ],
)
def test_ranges(limits, good, bad, words):
    assert Range(**limits).complaint(good) is None
    assert Range(**limits).complaint(bad) == words


def test_a_range_has_nothing_to_say_of_other_things():
    assert Range(ge=1).complaint(None) is None
    assert Range(ge=1).complaint(False) is None
