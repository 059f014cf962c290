from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hcpdiff.data import Dataset, FixedBucket, FolderSource
from hcpdiff.data.seeing import Report, look_at, page
from hcpdiff.data.seeing.charts import columns, text
from hcpdiff.data.seeing.words import read_words, uses_captions
from hcpdiff.data.sources.prompts import PromptSource
from hcpdiff.train.data_report import report
from tests.data.test_preview import scene

Make = Callable[..., Dataset]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" ' & \x1b[31m \u202e"


class Parsed(HTMLParser):
    """The elements of a page, their attributes and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Pictures of which some are broken, doubled, tiny, blurred, very long, or without a caption."""
    folder = tmp_path / "messy"
    folder.mkdir()
    for number in range(6):
        scene(128, 128, number).save(folder / f"good-{number}.png")
        (folder / f"good-{number}.txt").write_text(f"good, number {number}", encoding="utf-8")
    scene(128, 128, 0).save(folder / "copy.jpg")
    scene(40, 40, 7).save(folder / "tiny.png")
    scene(128, 128, 8).filter(ImageFilter.GaussianBlur(3)).save(folder / "blurred.png")
    scene(64, 512, 9).save(folder / "long.png")
    for name in ("copy", "tiny", "blurred", "long"):
        (folder / f"{name}.txt").write_text(f"good, {name}", encoding="utf-8")
    scene(128, 128, 10).save(folder / "silent.png")
    (folder / "broken.png").write_bytes(b"no image")
    content = (folder / "good-5.png").read_bytes()
    (folder / "half.png").write_bytes(content[: len(content) // 2])
    (folder / "half.txt").write_text("good", encoding="utf-8")
    return folder


def found(seen: Report) -> dict[str, set[str]]:
    """The keys of each kind of problem."""
    key = seen.dataset.samples.items.key
    return {
        problem.kind: {name for entry in problem.entries for name in [*map(key, entry.items), entry.key] if name}
        for problem in seen.problems
    }


def test_each_kind_of_problem_is_found_and_nothing_else(make: Make, messy: Path) -> None:
    seen = look_at(make(FolderSource(messy), FixedBucket(64)))
    assert found(seen) == {
        "broken": {"broken.png", "half.png"},
        "missing": {"silent.png"},
        "duplicates": {"good-0.png", "copy.jpg"},
        "tiny": {"tiny.png"},
        "extreme": {"long.png"},
        "blurred": {"blurred.png"},
    }
    assert "  look alike: 2 images" in seen.lines()
    duplicates = next(problem for problem in seen.problems if problem.kind == "duplicates")
    assert duplicates.entries[0].text == "2 images with different captions"


def test_a_good_dataset_has_no_problems(make: Make, messy: Path) -> None:
    for path in messy.iterdir():
        if not path.name.startswith("good-"):
            path.unlink()
    seen = look_at(make(FolderSource(messy), FixedBucket(64)))
    assert seen.problems == []
    assert "None found." in Parsed(page("Data", [seen])).words


def test_captions_that_no_prompt_needs_are_not_missed(make: Make, messy: Path) -> None:
    dataset = make(FolderSource(messy), FixedBucket(64), template=["a photo of a star"])
    assert not uses_captions(dataset)
    assert "missing" not in found(look_at(dataset))


def test_tags_are_counted_once_an_image_and_sentences_by_their_words(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"red, star, red, tag {number}", encoding="utf-8")
    words = read_words(make(FolderSource(folder)))
    assert words.tags
    assert words.counts == {"red": 3, "star": 3, "tag 0": 1, "tag 1": 1, "tag 2": 1}
    assert words.once == ["tag 0", "tag 1", "tag 2"]
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"There is a red star number {number} in the sky.", encoding="utf-8")
    words = read_words(make(FolderSource(folder)))
    assert not words.tags
    assert words.counts["star"] == 3
    assert "There is a red star number 0 in the sky." not in words.counts


def letters(texts: Sequence[str]) -> dict[str, tuple[list[int], int]]:
    """Two encoders, for which every letter is a token."""
    counts = [len(text) for text in texts]
    return {"short": (counts, 21), "long": (counts, 30)}


def test_prompts_that_every_encoder_cuts_are_a_problem(make: Make, images: Path) -> None:
    (images / "01.txt").write_text("x" * 25, encoding="utf-8")
    (images / "02.txt").write_text("y" * 40, encoding="utf-8")
    seen = look_at(make(), count_tokens=letters)
    assert [count for _, _, count in seen.words.tokens["short"].cut] == [40, 25]
    assert [count for _, _, count in seen.words.tokens["long"].cut] == [40]
    assert found(seen)["cut"] == {"02.png"}
    words = Parsed(page("Data", [seen])).words
    assert "40 tokens, of which short sees 21; 40 tokens, of which long sees 30" in words
    assert "Tokens for short" in words


def test_without_tokenizers_the_page_says_nothing_of_tokens(make: Make) -> None:
    assert "Tokens" not in Parsed(page("Data", [look_at(make())])).words


def test_the_page_holds_everything_and_runs_nothing(make: Make, messy: Path) -> None:
    (messy / "silent.png").rename(messy / "<script>alert(0)<.png")
    (messy / "good-1.txt").write_text(EVIL, encoding="utf-8")
    dataset = make(FolderSource(messy), FixedBucket(64), name="<b>main", template=["{caption}", f"{EVIL} {{caption}}"])
    html = page(EVIL, [look_at(dataset), look_at(make())])
    parsed = Parsed(html)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "link", "base", "svg"}
    attributes = [(name, value or "") for _, attrs in parsed.tags for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert {value[:23] for name, value in attributes if name == "src"} == {"data:image/jpeg;base64,"}
    assert all(value.startswith("#") for name, value in attributes if name == "href")
    assert "<script>alert(1)</script>" in parsed.words  # as words
    assert "http" not in re.sub(r'src="[^"]*"|http-equiv', "", html)
    assert "\x1b" not in html
    policy = next(attrs["content"] for tag, attrs in parsed.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_text_shows_what_is_no_unicode_and_cuts_what_is_too_long() -> None:
    assert text("a\udcffb") == "<bdi>a\\udcffb</bdi>"
    assert text("x" * 20, 5) == "<bdi>xxxxx ...</bdi>"


def test_the_histogram_marks_what_is_over_the_limit() -> None:
    drawn = columns(np.array([3, 5, 20, 21, 500]), 20)
    assert drawn.count("<i") == len(re.findall(r'class="(over|)"', drawn))
    bars = [(bool(over), int(count)) for over, count in re.findall(r'class="(over|)"[^>]*: (\d+)"', drawn)]
    assert sum(count for _, count in bars) == 5
    assert sum(count for over, count in bars if over) == 2
    assert "40 and more" in drawn


def test_a_part_of_many_images_is_decoded_and_the_page_says_so(make: Make) -> None:
    words = Parsed(page("Data", [look_at(make(), images=4)])).words
    assert "4 images, evenly spread, of 11" in words
    assert "--images N" in words


def test_prompts_without_images_are_shown_too(make: Make) -> None:
    seen = look_at(make(PromptSource(["a red star", "a blue star"], size=32)))
    assert (seen.problems, seen.thumbnails) == ([], {})
    assert "a blue star" in Parsed(page("Data", [seen])).words
    assert seen.sheet().width == 2 * 220


def test_several_datasets_share_a_page_and_have_a_sheet_each(tmp_path: Path, messy: Path, images: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(
        f"""
model: {{_target_: hcpdiff.models.SD3.from_pretrained, path: hcpdiff/tiny-sd3}}
data:
  one:
    source: {{_target_: hcpdiff.data.FolderSource, path: {images}}}
    bucket: {{_target_: hcpdiff.data.FixedBucket, size: 32}}
    batch_size: 4
  two:
    source: {{_target_: hcpdiff.data.FolderSource, path: {messy}}}
    bucket: {{_target_: hcpdiff.data.FixedBucket, size: 64}}
    batch_size: 4
""",
        encoding="utf-8",
    )
    lines = list(report(config, out=tmp_path / "deep" / "seen.html", images=50))
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["seen-one.png", "seen-two.png", "seen.html"]
    assert lines[-1] == f"page in {tmp_path / 'deep' / 'seen.html'}"
    assert "one: 11 images, 11 with a caption" in lines
    html = (tmp_path / "deep" / "seen.html").read_text(encoding="utf-8")
    assert {"#d0", "#d1"} == {attrs["href"] for tag, attrs in Parsed(html).tags if tag == "a"}
    assert "Tokens for clip_l and clip_g" in Parsed(html).words
    assert len(html) < 500_000
