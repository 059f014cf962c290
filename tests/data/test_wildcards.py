from __future__ import annotations

import random
from pathlib import Path

import pytest

from hcpdiff.data.prompts import MOST_OUTCOMES, TemplateFill, Wildcards, apply, outcomes
from hcpdiff.types import Prompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wildcard files, of which some refer to others."""
    files = {
        "colour": "# what cars have\nred\n\n3::blue\n0::pink\n",
        "car/make": "old __car/age__\n{a|b}\n",
        "car/age": "timer\n",
        "loop": "x\n__car/again__\n",
        "car/again": "y {z|__loop__}\n",
        "empty": "# nothing\n",
        "dangling": "__car/oge__\n",
    }
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    for name, text in files.items():
        path = tmp_path / "cards" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "cards" / "link.txt").symlink_to(tmp_path / "secret.txt")
    return tmp_path / "cards"


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("a {red|blue} car", {"a red car", "a blue car"}),
        ("{a|{b|c} d}", {"a", "b d", "c d"}),
        ("{a|b}{c|d}", {"ac", "ad", "bc", "bd"}),
        ("x, {red|}, y", {"x, red, y", "x, y"}),
        ("{0::a|2.5::b|c}", {"b", "c"}),
        ("{2::{a|b}|c}", {"a", "b", "c"}),
        ("{a|a}", {"a"}),
    ],
)
def test_choices_are_made(text: str, results: set) -> None:
    wildcards = Wildcards()
    assert (
        {wildcards(text, random.Random(seed)) for seed in range(200)} == results == set(wildcards.outcomes(text) or [])
    )


@pytest.mark.parametrize(
    "text",
    [
        "{x}",
        "a | b",
        "{{{",
        "}|{",
        "{a|b",
        "a|b}",
        "{a {b} c}",
        ":{ |",
        "{0::a|0::b}",
        "__x__",
        "^__^",
        "{2::a}",
        "{ {a|",
    ],
)
def test_braces_that_are_no_choice_stay_as_they_are(text: str) -> None:
    assert Wildcards()(text, random.Random(0)) == text
    assert Wildcards().outcomes(text) == [text]


def test_a_choice_within_braces_that_are_none_is_made() -> None:
    assert set(Wildcards().outcomes("{ x {a|b}") or []) == {"{ x a", "{ x b"}
    assert set(Wildcards().outcomes("{x {a|b}}") or []) == {"{x a}", "{x b}"}


def test_weights_say_how_often_an_option_is_drawn(folder: Path) -> None:
    for text in ("{3::blue|red}", "__colour__"):
        drawn = [Wildcards(folder)(text, random.Random(seed)) for seed in range(2000)]
        assert drawn.count("blue") / len(drawn) == pytest.approx(0.75, abs=0.04)  # a standard error of 0.01
        assert set(drawn) == {"blue", "red"}


def test_files_may_lie_in_subfolders_and_refer_to_each_other(folder: Path) -> None:
    wildcards = Wildcards(folder)
    results = {"my old timer (x)", "my a (x)", "my b (x)"}
    assert {wildcards("my __car/make__ (x)", random.Random(seed)) for seed in range(100)} == results
    assert set(wildcards.outcomes("my __car/make__ (x)") or []) == results


def test_words_with_underscores_are_no_references(folder: Path) -> None:
    for text in ("snake__case__name", "^__^, >__<", "____", "__ colour __", "__..__"):
        assert Wildcards(folder)(text, random.Random(0)) == text


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("__color__", FileNotFoundError, r"there is no color.txt in .*cards; did you mean colour"),
        ("__zzzzzz__", FileNotFoundError, r"there is no zzzzzz.txt in .*cards; it has car/again, car/age, car/make"),
        ("{a|__dangling__}", FileNotFoundError, r"there is no car/oge.txt in .*; did you mean car/age"),
        ("__../secret__", ValueError, r"__../secret__ leads out of .*cards; name a file below it"),
        ("__/etc/passwd__", ValueError, r"__/etc/passwd__ leads out of"),
        ("__..\\secret__", ValueError, r"leads out of"),
        ("__link__", ValueError, r"__link__ leads out of"),
        ("__loop__", ValueError, r"__loop__ -> __car/again__ -> __loop__ goes round in a circle"),
        ("__car/again__", ValueError, r"goes round in a circle"),
        ("__empty__", ValueError, r"empty.txt has no line to draw; write one option per line"),
    ],
)
def test_wrong_references_are_named(text: str, error: type, message: str, folder: Path) -> None:
    for seed in range(5):  # whichever option is drawn
        with pytest.raises(error, match=f"wildcards: .*{message}"):
            Wildcards(folder)(text, random.Random(seed))
    with pytest.raises(error, match=message):
        Wildcards(folder).outcomes(text)


def test_a_file_that_is_no_text_and_a_missing_folder_are_named(folder: Path) -> None:
    (folder / "broken.txt").write_bytes(b"a\n\xff")
    with pytest.raises(ValueError, match=r"wildcards: .*broken.txt is not UTF-8 \(invalid start byte at byte 2\)"):
        Wildcards(folder)("__broken__", random.Random(0))
    with pytest.raises(FileNotFoundError, match=r"folder: no folder at .*gone"):
        Wildcards(folder / "gone")


def test_a_template_may_hold_choices_that_are_made_behind_it() -> None:
    chain = [TemplateFill(["a {{photo|picture}} of {pt1}, {caption}"], {"pt1": ["x", "y"]}), Wildcards()]
    drawn = {apply(chain, "{1|2}", random.Random(seed)) for seed in range(400)}
    sides = [[f"a {kind} of {word}, {n}" for kind in ("photo", "picture") for n in (1, 2)] for word in ("x", "y")]
    assert drawn == {Prompt(p, n) for p in sides[0] for n in sides[1]} == outcomes(chain, ["{1|2}"])


def test_too_many_choices_are_noticed_before_they_are_made(folder: Path) -> None:
    (folder / "long.txt").write_text("\n".join(map(str, range(MOST_OUTCOMES + 1))), encoding="utf-8")
    wildcards = Wildcards(folder)
    assert wildcards.outcomes("{a|b}" * 10_000) is None
    assert wildcards.outcomes("__long__") is None
    assert wildcards.outcomes("{" + "|".join(map(str, range(MOST_OUTCOMES + 1))) + "}") is None
    assert len(wildcards.outcomes("{a|b}" * 8) or []) == MOST_OUTCOMES
    assert wildcards("__long__", random.Random(0)).isdigit()


def test_braces_within_braces_without_end_are_text() -> None:
    for text in ("{a|" * 30_000 + "}" * 30_000, "{" * 100_000, "{a|" * 51 + "b" + "}" * 51):
        assert Wildcards()(text, random.Random(0)) == text
    assert Wildcards()("{a|" * 50 + "a" + "}" * 50, random.Random(0)) == "a"
