from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from hcpdiff.data.captions import caption_reader, stem

NAMES = ["a.png", "sub/b.c.jpg", "猫.webp"]


def read(tmp_path: Path, table: object) -> dict[str, list[str]]:
    (tmp_path / "captions.json").write_text(json.dumps(table), encoding="utf-8")
    reader = caption_reader(None, tmp_path, NAMES)
    return {name: list(reader(name)) for name in NAMES}


def test_a_json_file_may_name_images_with_or_without_suffix_and_folder(tmp_path: Path) -> None:
    assert read(tmp_path, {"a": "first", "b.c.jpg": ["one", "two"], "猫.webp": " cat "}) == {
        "a.png": ["first"],
        "sub/b.c.jpg": ["one", "two"],
        "猫.webp": ["cat"],
    }


def test_the_precise_name_wins_and_missing_ones_have_no_caption(tmp_path: Path) -> None:
    assert read(tmp_path, {"b.c": "loose", "sub/b.c.jpg": "precise"})["sub/b.c.jpg"] == ["precise"]
    assert read(tmp_path, {"a": "x"})["猫.webp"] == []


def test_composed_and_decomposed_unicode_are_the_same_name() -> None:
    reader = caption_reader({"caf\u00e9": "coffee"}, Path(), ["cafe\u0301.png"])
    assert reader("cafe\u0301.png") == ["coffee"]
    assert stem("x/cafe\u0301.png") == unicodedata.normalize("NFC", "x/cafe\u0301")


def test_a_caption_file_elsewhere_a_folder_elsewhere_and_a_function(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("from a folder", encoding="utf-8")
    (tmp_path / "any name.json").write_text('{"a": "from a file"}', encoding="utf-8")
    assert caption_reader(tmp_path / "other", Path(), NAMES)("a.png") == ["from a folder"]
    assert caption_reader(tmp_path / "any name.json", Path(), NAMES)("a.png") == ["from a file"]
    assert caption_reader(lambda name: [name.upper()], Path(), NAMES)("a.png") == ["A.PNG"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 3}', r"'a': 3 is no caption; use a text or a list of texts"),
        (b'["a"]', r"should hold \{image name: caption\}, not a list"),
        (b'{"a": ', r"captions.json is not valid JSON"),
        (b'{"a": "\xff"}', r"captions.json is not UTF-8 \(invalid start byte at byte 7\)"),
        (b'{"zebra": "x"}', r"none of its names, e.g. 'zebra', is that of an image, e.g. 'a.png'"),
    ],
)
def test_a_wrong_json_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        caption_reader(None, tmp_path, NAMES)


def test_a_missing_caption_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"captions: nothing at .*gone\.json"):
        caption_reader(tmp_path / "gone.json", tmp_path, NAMES)
