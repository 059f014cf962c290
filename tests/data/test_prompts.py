from __future__ import annotations

import random
from pathlib import Path

import pytest

from hcpdiff.data import CaptionDropout, TagDropout, TagShuffle, TemplateFill
from hcpdiff.data.captioning import Captioning
from hcpdiff.data.prompts import apply, outcomes, tidy
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


def test_shuffle_keeps_the_first_tags_and_loses_none() -> None:
    results = {TagShuffle(keep=1)(TAGS, random.Random(seed)) for seed in range(30)}
    assert len(results) > 5
    assert all(text.startswith("sks, ") and sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in results)


def test_tag_dropout_drops_its_share_and_never_the_kept_tags() -> None:
    texts = [TagDropout(0.25, keep=1)(TAGS, random.Random(seed)) for seed in range(400)]
    assert all(text.startswith("sks") for text in texts)
    share = 1 - sum(len(text.split(", ")) - 1 for text in texts) / (4 * len(texts))
    assert share == pytest.approx(0.25, abs=0.05)  # 1600 draws: a standard error of 0.011


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


def test_equal_seeds_draw_equal_prompts() -> None:
    captioning = Captioning([TagShuffle(), TagDropout(0.3)], ["{caption}", "a {caption}"], prompt_dropout=0.1)
    drawn = [captioning.draw([TAGS, "other"], random.Random(seed)) for seed in range(20)]
    assert drawn == [captioning.draw([TAGS, "other"], random.Random(seed)) for seed in range(20)]
    assert len(set(drawn)) > 10


def test_outcomes_are_all_that_can_be_drawn() -> None:
    captioning = Captioning([CaptionDropout(0.5)], ["{caption}", "a {caption}"], prompt_dropout=0.2)
    possible = captioning.outcomes(["x", "y"])
    drawn = {captioning.draw(["x", "y"], random.Random(seed)) for seed in range(300)}
    assert possible == drawn == {Prompt(text) for text in ("x", "a x", "y", "a y", "a", "")}


def test_shuffles_and_unknown_transforms_are_endless() -> None:
    assert outcomes([TagShuffle()], [TAGS]) is None
    assert outcomes([TagShuffle()], ["one tag"]) == {Prompt("one tag")}
    assert outcomes([lambda text, rng: text], ["x"]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_names": {"a": "b"}}, "word_names: they fill a template, and there is none"),
        ({"prompt_dropout": 1.5}, "prompt_dropout: 1.5 is no probability"),
        ({"template": ["x"], "transforms": [TemplateFill(["y"])]}, "caption_transforms fill a template already"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captioning(**options)


def test_probabilities_are_checked() -> None:
    with pytest.raises(ValueError, match=r"TagDropout.p: 2 is no probability"):
        TagDropout(2)
