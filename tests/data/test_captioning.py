from __future__ import annotations

import pickle
import random

import pytest

from hcpdiff.data.prompts import CaptionDropout, TagDropout, TagShuffle, TemplateFill, Trigger, Wildcards
from hcpdiff.data.prompts.captioning import Captioning
from hcpdiff.types import Prompt

TAGS = "sks, red, green, blue, white"


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_names": {"a": "b"}}, "word_names: they fill a template, and there is none"),
        ({"prompt_dropout": 1.5}, "prompt_dropout: 1.5 is no probability"),
        ({"transforms": [TemplateFill(["x"]), TemplateFill(["y"])]}, "caption_transforms: only one of them may fill"),
        ({"template": ["x"], "transforms": [TemplateFill(["y"])]}, "caption_transforms fill a template already"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captioning(**options)


def test_captions_are_drawn_by_their_weights() -> None:
    captioning = Captioning()
    drawn = [captioning.draw(["a", "b", "c"], random.Random(seed), [3, 1, 0]).positive for seed in range(2000)]
    assert drawn.count("a") / len(drawn) == pytest.approx(0.75, abs=0.04)  # a standard error of 0.01
    assert "c" not in drawn
    assert drawn == [captioning.draw(["a", "b", "c"], random.Random(seed), [6, 2, 0]).positive for seed in range(2000)]


def test_an_image_without_a_caption_has_an_empty_prompt() -> None:
    assert Captioning().draw([], random.Random(0)) == Captioning().draw([], random.Random(0), []) == Prompt("")
    assert Captioning().only([]) == Prompt("")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "captions: 2 captions have 1 weights; give each caption one"),
        ([1.0, -1.0], "use numbers of 0 or more, not all 0"),
        ([0.0, 0.0], "use numbers of 0 or more, not all 0"),
        ([1.0, float("inf")], "use numbers of 0 or more"),
        ([1.0, float("nan")], "use numbers of 0 or more"),
    ],
)
def test_weights_that_nothing_can_be_drawn_by_are_refused(weights: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captioning().draw(["a", "b"], random.Random(0), weights)


def test_what_templates_and_words_do_not_have_of_each_other_is_told() -> None:
    told = Captioning(template=["{pt1} {caption} {clas}"], word_names={"pt1": "a", "class": "dog"}).unfilled
    assert "no entry for {clas}" in told
    assert "no template has {class}" in told
    assert Captioning(template=["{pt1}"], word_names={"pt1": "a"}).unfilled == ""


def test_only_is_the_prompt_if_there_is_no_other() -> None:
    assert Captioning([TagShuffle()]).only(["a"]) == Prompt("a")
    assert Captioning([TagShuffle()]).only(["a, b"]) is None
    assert Captioning([lambda text, rng: text]).only(["a"]) is None


def test_worker_processes_draw_the_same() -> None:
    chain = [Wildcards(), Trigger("sks"), TagShuffle(protected=["re:b.*"]), TagDropout(0.3, protected=["a"])]
    captioning = Captioning(chain, ["{caption} {pt1}"], {"pt1": ["x", "y"]}, 0.1)
    drawn = [captioning.draw(["{a|b}, c, d", "e, f"], random.Random(seed), [2, 1]) for seed in range(20)]
    sent = pickle.loads(pickle.dumps(captioning))
    assert drawn == [sent.draw(["{a|b}, c, d", "e, f"], random.Random(seed), [2, 1]) for seed in range(20)]
