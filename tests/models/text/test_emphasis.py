"""The grammar of weights in prompts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcpdiff.models.text.emphasis import LARGEST, Grammar, Span, parse

SIGNS = "()[]{}\\:.-+0123456789 abBREAK,_\n😀"
PLAIN = st.text(st.sampled_from("ab ,._-1é😀"))


def weights(text: str, grammar: Grammar = "webui") -> dict[str, float]:
    """{words: weight} of a prompt without BREAK."""
    (spans,) = parse(text, grammar)
    return {span.text: span.weight for span in spans}


@pytest.mark.parametrize(("text", "wanted"), [
    ("", {}),
    ("a red star", {"a red star": 1}),
    ("a (red:1.3) star", {"a ": 1, "red": 1.3, " star": 1}),
    ("a (red) [star]", {"a ": 1, "red": 1.1, " ": 1, "star": 1 / 1.1}),
    ("((red) star)", {"red": 1.1 * 1.1, " star": 1.1}),
    ("(a (b:2) c:3)", {"a ": 3, "b": 6, " c": 3}),
    ("((a:2):0.5) b", {"a b": 1}),
    ("(a:+.5)(b: 2. )", {"a": 0.5, "b": 2}),
    ("(a:-1)", {"a": -1}),
    ("(one)(two)", {"onetwo": 1.1}),
    (r"artist_\(style\), \[x\] \\", {"artist_(style), [x] \\": 1}),
    (r"(artist_\(style\):1.2)", {"artist_(style)": 1.2}),
    ("(a:1.2.3)", {"a:1.2.3": 1.1}),
    ("(at 12:30 sharp)", {"at 12:30 sharp": 1.1}),
    ("a: b", {"a: b": 1}),
    (r"\o/", {r"\o/": 1}),
    ("{a:2}", {"{a:2}": 1}),
])  # fmt: skip
def test_the_signs_of_the_web_ui_weigh_words(text: str, wanted: dict[str, float]) -> None:
    assert weights(text) == pytest.approx(wanted)


@pytest.mark.parametrize(("text", "wanted"), [
    ("a) b:1.2)", {"a) b:1.2)": 1}),
    ("a] b", {"a] b": 1}),
    ("a (b", {"a ": 1, "b": 1.1}),
    ("a [b (c", {"a ": 1, "b ": 1 / 1.1, "c": 1}),
    ("[a:2]", {"a:2": 1 / 1.1}),
    ("(a]", {"a]": 1.1}),
])  # fmt: skip
def test_brackets_without_a_partner_mean_what_they_do_in_the_web_ui(text: str, wanted: dict[str, float]) -> None:
    assert weights(text) == pytest.approx(wanted)


def test_braces_weigh_words_as_the_original_did() -> None:
    found = weights("a {cat} running {in the {city}:1.2}", "braces")
    assert found == pytest.approx({"a ": 1, "cat": 1.1, " running ": 1, "in the ": 1.2, "city": 1.32})
    assert weights(r"(a) [b] \{c\} d}", "braces") == {"(a) [b] {c} d}": 1}


def test_break_parts_a_prompt_and_takes_the_space_around_it() -> None:
    assert parse("a star BREAK a moon") == [[Span("a star")], [Span("a moon")]]
    assert parse("(a BREAK b:1.5)\nBREAK\nBREAKFAST") == [[Span("a", 1.5)], [Span("b", 1.5)], [Span("BREAKFAST")]]
    assert parse("BREAK a BREAK BREAK") == [[], [Span("a")], [], []]


@given(st.text(st.sampled_from(SIGNS)) | st.text(), st.sampled_from(["webui", "braces"]))
def test_no_text_is_wrong_and_no_word_is_lost(text: str, grammar: Grammar) -> None:
    parts = parse(text, grammar)
    spans = [span for part in parts for span in part]
    assert all(span.text and math.isfinite(span.weight) and abs(span.weight) <= LARGEST for span in spans)
    for part in parts:
        assert all(a.weight != b.weight for a, b in pairwise(part))
    kept = "".join(span.text for span in spans) + "BREAK" * (len(parts) - 1)
    dropped = set("()[]{}\\:.-+0123456789")
    for letter in set(text) - dropped:
        if not letter.isspace():
            assert kept.count(letter) == text.count(letter)


@given(PLAIN, st.sampled_from(["webui", "braces"]))
def test_plain_text_comes_back_as_it_is(text: str, grammar: Grammar) -> None:
    assert parse(text, grammar) == ([[Span(text)]] if text else [[]])


@given(st.text(), st.sampled_from(["webui", "braces"]))
def test_escaped_text_comes_back_as_it_is(text: str, grammar: Grammar) -> None:
    text = text.replace("BREAK", "")
    brackets = "\\()[]" if grammar == "webui" else "\\{}"
    escaped = "".join(f"\\{letter}" if letter in brackets else letter for letter in text)
    (spans,) = parse(escaped, grammar)
    assert "".join(span.text for span in spans) == text


@given(st.lists(st.integers(-30, 30).map(lambda n: n / 10), min_size=1, max_size=4))
def test_weights_in_each_other_multiply(numbers: list[float]) -> None:
    text = "(" * len(numbers) + "a" + "".join(f":{number})" for number in numbers)
    ((span,),) = parse(text)
    assert span == Span("a", pytest.approx(math.prod(numbers)))
