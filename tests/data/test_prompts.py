from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hcpdiff.data.prompts import (
    MOST_OUTCOMES,
    CaptionDropout,
    Prefix,
    SentenceDropout,
    Suffix,
    TagDropout,
    TagErase,
    TagShuffle,
    TemplateFill,
    Trigger,
    apply,
    outcomes,
    tidy,
)
from hcpdiff.data.prompts.sentences import split_sentences
from hcpdiff.types import Prompt

TAGS = "sks, red, green, blue, white"


def fill(template: str, words: dict | None = None, caption: str = "cap") -> Prompt:
    return TemplateFill([template], words)(caption, random.Random(0))


def test_words_and_the_caption_fill_a_template() -> None:
    assert fill("a {pt1} {class}, {caption}", {"pt1": "sks", "class": "dog"}) == Prompt("a sks dog, cap")


def test_a_caption_among_the_words_overrides_the_real_one() -> None:
    assert fill("{caption}", {"caption": "mine"}) == Prompt("mine")


def test_names_without_a_word_become_nothing_and_no_commas_are_left_over() -> None:
    assert fill("{caption}, a {pt1} {class}, {x}", {"pt1": "sks"}, "") == Prompt("a sks")
    assert TemplateFill(["{pt1} {caption} {x}"], {"pt1": "a"}).missing == ["x"]


def test_braces_in_captions_and_doubled_braces_are_text() -> None:
    assert fill("{{x}} {caption}", None, "{pt1}") == Prompt("{x} {pt1}")


def test_pairs_give_a_negative_prompt_and_plain_words_serve_both() -> None:
    words = {"pt1": ["cat", "cat-neg"], "class": "animal"}
    assert fill("a {pt1} {class}, {caption}", words) == Prompt("a cat animal, cap", "a cat-neg animal, cap")


def test_a_template_is_drawn_from_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a {pt1}\n\nthe {pt1}\n", encoding="utf-8")
    template = TemplateFill(tmp_path / "t.txt", {"pt1": "sks"})
    drawn = {template("", random.Random(seed)).positive for seed in range(20)}
    assert drawn == {"a sks", "the sks"} == {prompt.positive for prompt in template.outcomes("")}


@pytest.mark.parametrize(
    ("templates", "words", "message"),
    [
        (["{"], {}, "write a literal brace twice"),
        (["{caption.__class__}"], {}, r"\{caption.__class__\} is not a name"),
        (["{}"], {}, r"\{\} is not a name"),
        (["{0}"], {}, r"\{0\} is not a name"),
        (["{a!r}"], {}, r"\{a!r\} is not a name"),
        (["{a:>999999999}"], {}, r"\{a:>999999999\} is not a name"),
        (["{a:{b}}"], {}, r"\{a:\{b\}\} is not a name"),
        (["a }"], {}, "write a literal brace twice"),
        ("a {pt1}", {}, r"'a \{pt1\}' is a template, not a file; write it as a list"),
        ([], {}, "there is no template in it"),
        (["{a}"], {"a": ["x"]}, "word_names.a: .* neither a word nor a pair"),
        (["{a}"], {"a": 3}, "word_names.a: 3 is neither a word nor a pair"),
    ],
)
def test_wrong_templates_and_words_are_named(templates: list, words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemplateFill(templates, words)


def test_a_missing_template_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"template: no file at .*gone\.txt"):
        TemplateFill(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a , ,, b", "a, b"),
        (", a,  b ,", "a, b"),
        ("1,000 cats", "1,000 cats"),
        ("a\n b", "a b"),
        (" ", ""),
        (",a,b", "a,b"),
    ],
)
def test_tidy(text: str, clean: str) -> None:
    assert tidy(text) == clean


def test_caption_dropout_before_the_template_spares_the_template() -> None:
    template = TemplateFill(["a {pt1}, {caption}"], {"pt1": "sks"})
    assert apply([CaptionDropout(1.0), template], "cap", random.Random(0)) == Prompt("a sks")
    assert apply([template, CaptionDropout(1.0)], "cap", random.Random(0)) == Prompt("")


def test_transforms_after_the_template_change_both_prompts_but_no_empty_one() -> None:
    def shout(text: str, rng: random.Random) -> str:
        return text.upper() + "!"

    pair = TemplateFill(["{a}"], {"a": ["good", "bad"]})
    single = TemplateFill(["{a}"], {"a": "good"})
    assert apply([pair, shout], "", random.Random(0)) == Prompt("GOOD!", "BAD!")
    assert apply([single, shout], "", random.Random(0)) == Prompt("GOOD!", "")


def test_tag_transforms_work_before_the_template_on_the_caption_and_after_it_on_both_prompts() -> None:
    words = {"pt1": ["sks", "sks-neg"]}
    template = TemplateFill(["photo, {pt1}, {caption}"], words)
    for transform in (TagDropout(1.0), TagErase(1.0)):
        assert apply([transform, template], "a, b", random.Random(0)) == Prompt("photo, sks", "photo, sks-neg")
        assert apply([template, transform], "a, b", random.Random(0)) == Prompt("", "")
    shuffled = apply([template, TagShuffle()], "a, b", random.Random(3))
    assert sorted(shuffled.positive.split(", ")) == ["a", "b", "photo", "sks"]
    assert sorted(shuffled.negative.split(", ")) == ["a", "b", "photo", "sks-neg"]


def test_an_image_without_caption_fills_a_template_as_an_empty_one() -> None:
    assert TemplateFill(["a {pt1}, {caption}"], {"pt1": "sks", "x": None})("", random.Random(0)) == Prompt("a sks")


def test_words_that_no_template_asks_for_are_known() -> None:
    assert TemplateFill(["{pt1} {caption}"], {"pt1": "a", "cls": "dog", "caption": "c"}).unused == ["cls"]


def test_a_template_file_of_any_editor_is_read_and_its_encoding_errors_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("a {pt1}\r\nthe {pt1}\r\n".encode("utf-16"))
    assert TemplateFill(tmp_path / "t.txt").templates == ["a {pt1}", "the {pt1}"]
    (tmp_path / "t.txt").write_bytes(b"a \xff")
    with pytest.raises(ValueError, match=r"template: .*t.txt is not UTF-8 \(invalid start byte at byte 2\)"):
        TemplateFill(tmp_path / "t.txt")


def test_a_second_template_is_refused() -> None:
    with pytest.raises(ValueError, match="only one of them may fill templates"):
        apply([TemplateFill(["a"]), TemplateFill(["b"])], "", random.Random(0))


def test_prefix_and_suffix_go_around_a_caption_and_leave_no_comma_beside_an_empty_one() -> None:
    around = [Prefix("a photo of", between=" "), Suffix("best quality")]
    assert apply(around, "a cat", random.Random(0)) == Prompt("a photo of a cat, best quality")
    assert apply([Suffix("x")], " ", random.Random(0)) == apply([Prefix("x")], "", random.Random(0)) == Prompt("x")
    assert outcomes(around, ["a cat"]) == {Prompt("a photo of a cat, best quality")}


@pytest.mark.parametrize(
    ("words", "text", "result"),
    [
        ("sks", "a cat", "sks, a cat"),
        ("sks", "a photo of SKS cat", "a photo of SKS cat"),
        ("sks", "asks why", "sks, asks why"),
        (["sks", "red car"], "a red car", "sks, a red car"),
        (["sks", "red car"], "", "sks, red car"),
        ("a.b", "axb", "a.b, axb"),
    ],
)
def test_a_trigger_is_put_in_front_unless_it_is_there(words: str | list, text: str, result: str) -> None:
    assert Trigger(words).changed(text) == result
    assert Trigger(words).changed(result) == result


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A cat sits. It is red! Why?", ["A cat sits.", "It is red!", "Why?"]),
        ("Dr. J. Smith has 3.5 cats, e.g. Tom. He smiles", ["Dr. J. Smith has 3.5 cats, e.g. Tom.", "He smiles"]),
        ('He says "stop!" Then... nothing.', ['He says "stop!"', "Then...", "nothing."]),
        ("She lives in the U.S. with cats. (Two.) Yes", ["She lives in the U.S. with cats.", "(Two.)", "Yes"]),
        ("1. a cat\n2. a dog", ["1. a cat", "2. a dog"]),
        ("一只猫。它是红色的\uff01对", ["一只猫。", "它是红色的\uff01", "对"]),
        ("a lowercase cat. and a dog.", ["a lowercase cat.", "and a dog."]),
        ("", [""]),
        (" . ", ["."]),
    ],
)
def test_sentences_are_told_apart(text: str, sentences: list) -> None:
    assert [sentence.strip() for sentence in split_sentences(text)] == sentences
    assert "".join(split_sentences(text)) == text


def test_sentence_dropout_drops_its_share_and_never_the_kept_sentences() -> None:
    text = "One. Two. Three. Four. Five."
    drawn = [SentenceDropout(0.5, keep=1)(text, random.Random(seed)) for seed in range(400)]
    assert all(result.startswith("One.") for result in drawn)
    assert set(drawn) == set(SentenceDropout(0.5, keep=1).outcomes(text) or [])
    share = 1 - sum(result.count(".") - 1 for result in drawn) / (4 * len(drawn))
    assert share == pytest.approx(0.5, abs=0.05)  # 1600 draws: a standard error of 0.0125


def test_outcomes_are_none_as_soon_as_one_caption_has_too_many() -> None:
    many = [CaptionDropout(0.5)] * 3
    assert len(outcomes([TemplateFill([f"{n} {{caption}}" for n in range(MOST_OUTCOMES)])], ["x"]) or []) == 256
    assert outcomes([TemplateFill([f"{n} {{caption}}" for n in range(MOST_OUTCOMES + 1)])], ["x"]) is None
    assert outcomes([*many, TagDropout(0.5)], [", ".join(map(str, range(9)))]) is None
    assert outcomes([TagDropout(0.5)], [str(n) for n in range(1000)]) == {Prompt(str(n)) for n in range(1000)} | {
        Prompt("")
    }


def test_outcomes_of_both_sides_are_all_pairs_of_them() -> None:
    pair = TemplateFill(["{a}"], {"a": ["good, x", "bad, y"]})
    possible = outcomes([pair, TagDropout(0.5)], [""])
    drawn = {apply([pair, TagDropout(0.5)], "", random.Random(seed)) for seed in range(400)}
    assert possible == drawn
    assert len(drawn) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionDropout(-1), "CaptionDropout.p: -1 is no probability; use a number from 0 to 1"),
        (lambda: SentenceDropout(2), "SentenceDropout.p: 2 is no probability"),
        (lambda: SentenceDropout(keep=-1), "SentenceDropout.keep: -1 is too few; use 0 or more"),
        (lambda: Prefix(" "), "Prefix.text: ' ' would change nothing; give a text"),
        (lambda: Suffix(""), "Suffix.text: '' would change nothing"),
        (lambda: Trigger([]), "Trigger.words: there are none; give at least one word"),
        (lambda: Trigger(["a", ""]), "Trigger.words: '' would change nothing"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
