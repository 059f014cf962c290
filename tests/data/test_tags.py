from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import pytest

from hcpdiff.data.prompts import TagDropout, TagErase, TagShuffle, apply, outcomes, split_tags
from hcpdiff.types import Prompt

TAGS = "sks, red, green, blue, white"


def test_shuffle_keeps_the_first_tags_and_loses_none() -> None:
    results = {TagShuffle(keep=1)(TAGS, random.Random(seed)) for seed in range(30)}
    assert len(results) > 5
    assert all(text.startswith("sks, ") and sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in results)


def test_tag_dropout_drops_its_share_and_never_the_kept_tags() -> None:
    texts = [TagDropout(0.25, keep=1)(TAGS, random.Random(seed)) for seed in range(400)]
    assert all(text.startswith("sks") for text in texts)
    share = 1 - sum(len(text.split(", ")) - 1 for text in texts) / (4 * len(texts))
    assert share == pytest.approx(0.25, abs=0.05)  # 1600 draws: a standard error of 0.011


def test_tags_are_stripped_and_empty_ones_left_out() -> None:
    assert split_tags(" a ,, b c,\n, d\n") == ["a", "b c", "d"]
    assert TagDropout(0.0)(" a ,, b c,", random.Random(0)) == "a, b c"


def test_a_shuffle_leaves_protected_tags_at_their_places() -> None:
    shuffle = TagShuffle(protected=["GREEN", "re:w.*"])
    results = {tuple(shuffle(TAGS, random.Random(seed)).split(", ")) for seed in range(60)}
    orders = set(itertools.permutations(["sks", "red", "blue"]))
    assert results == {(a, b, "green", c, "white") for a, b, c in orders}


def test_dropout_and_erasure_leave_protected_and_kept_tags() -> None:
    protected = ["Blue", "re:(?:re|whi).+"]  # a pattern is of the whole tag: "red" is, "re" alone would not be
    assert TagDropout(1.0, protected=protected)(TAGS, random.Random(0)) == "red, blue, white"
    assert TagErase(1.0, protected=protected, keep=1)(TAGS, random.Random(0)) == "sks, red, blue, white"
    assert TagErase(1.0)(TAGS, random.Random(0)) == ""
    assert TagErase(0.0)("as, it ,is", random.Random(0)) == "as, it ,is"


def test_p_enable_says_how_often_tags_are_left_out_at_all() -> None:
    drawn = [TagDropout(1.0, p_enable=0.25)(TAGS, random.Random(seed)) for seed in range(1000)]
    assert set(drawn) == {"", TAGS}
    assert drawn.count("") / len(drawn) == pytest.approx(0.25, abs=0.06)  # a standard error of 0.014
    assert TagDropout(1.0, p_enable=0.0).outcomes(TAGS) == [TAGS]


def test_what_stands_before_the_separator_is_kept_and_so_is_what_stands_behind_a_second_one() -> None:
    text = "a girl, sks ||| red, green ||| photo, 4k"
    chain = [TagShuffle(keep=5), TagDropout(0.5)]
    drawn = {apply(chain, text, random.Random(seed)).positive for seed in range(100)}
    middles = ["", "red, ", "green, ", "red, green, ", "green, red, "]
    assert drawn == {f"a girl, sks, {middle}photo, 4k" for middle in middles}
    assert {Prompt(text) for text in drawn} == outcomes(chain, [text])
    assert apply([TagErase(1.0)], "sks ||| red, green", random.Random(0)) == Prompt("sks")
    assert apply([TagErase(1.0)], "||| red", random.Random(0)) == Prompt("")


def test_without_a_tag_transform_a_separator_is_text_and_another_may_be_chosen() -> None:
    assert apply([], "a ||| b", random.Random(0)) == Prompt("a ||| b")
    assert apply([TagDropout(1.0, separator="@@")], "a @@ b, ||| c", random.Random(0)) == Prompt("a")


def test_outcomes_of_tags_are_exactly_what_can_be_drawn() -> None:
    for transform in (TagShuffle(keep=1), TagDropout(0.5, keep=1), TagDropout(0.5, p_enable=0.5), TagErase(0.5)):
        drawn = {transform("a, b, c,d", random.Random(seed)) for seed in range(500)}
        assert drawn == set(transform.outcomes("a, b, c,d") or [])


def test_equal_tags_make_no_more_outcomes() -> None:
    assert TagShuffle().outcomes("a, a, a") == ["a, a, a"]
    assert sorted(TagDropout(0.5).outcomes("a, a") or []) == ["", "a", "a, a"]


def test_too_many_outcomes_are_noticed_before_they_are_made() -> None:
    text = ", ".join(map(str, range(50_000)))  # of these, 2 ** 50_000 and 50_000! would never be made
    assert TagShuffle().outcomes(text) is None
    assert TagDropout(0.5).outcomes(text) is None
    assert len(TagDropout(0.5, keep=49_999).outcomes(text) or []) == 2
    assert outcomes([TagShuffle()], ["a, b, c, d, e, f"]) is None  # 720
    assert len(outcomes([TagShuffle()], ["a, b, c, d, e"]) or []) == 120
    assert outcomes([lambda text, rng: text], ["x"]) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TagDropout(2), "TagDropout.p: 2 is no probability; use a number from 0 to 1"),
        (lambda: TagDropout(p_enable=-1), "TagDropout.p_enable: -1 is no probability"),
        (lambda: TagErase(float("nan")), "TagErase.p: nan is no probability"),
        (lambda: TagShuffle(keep=-1), "TagShuffle.keep: -1 is too few; use 0 or more"),
        (lambda: TagShuffle(protected="sks"), "TagShuffle.protected: 'sks' is a text; give a list of tags, ['sks']"),
        (lambda: TagDropout(protected=["re:("]), "TagDropout.protected: 're:(' is no regular expression: missing )"),
        (lambda: TagShuffle(separator=", "), "TagShuffle.separator: ', ' cannot be told from a caption"),
    ],
)
def test_wrong_settings_of_tag_transforms_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
