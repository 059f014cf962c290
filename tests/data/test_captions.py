from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from hcpdiff.config.building import build
from hcpdiff.data.captions import (
    FilenameCaptions,
    FirstCaptions,
    SidecarCaptions,
    TableCaptions,
    caption_reader,
    stem,
    weights_of,
)

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
        (b'{"a": "x", "a": "y"}', r"captions.json: 'a' is there twice"),
        (b'{"caf\xc3\xa9": "x", "cafe\xcc\x81": "y"}', "'cafe\u0301' is there twice; leave one of the two out"),
        (b'{"a": {"tags": "x"}}', r"'a': 'tags' is unknown; write \{text: a caption, weight: 2\}"),
        (b'{"a": {"weight": 2}}', r"'a': there should be one text"),
        (b'{"a": [{"text": "x", "weight": 0}]}', r"'a': 0 is no weight; use a number above 0"),
        (b'{"a": [{"text": "x", "weight": true}]}', r"'a': True is no weight"),
        (b'{"a": [["x"]]}', r"'a': \['x'\] is no caption"),
        (b'{"a": "x\\ud800"}', r"'a': character 1 is half of one, '\\ud800'"),
        (b"[" * 100_000, r"nested too deeply"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "captions.yaml is not valid YAML: [\\s\\S]*line 2, column 1"),
        ("- a", r"captions.yaml should hold \{image name: caption\}, not a list"),
        ("a: x\na: y", "captions.yaml: 'a' is there twice"),
        ("a:\n- {text: x, weight: often}", "'a': 'often' is no weight"),
        ("? [a]\n: x", "a name should be a text"),
        ("a: &a [*a]", r"there is no &a before \*a"),
        ("a: x\n---\nb: y", "there are several documents in it"),
        ("[" * 50_000, "captions.yaml is nested too deeply"),
        ("null: x", "None is no name of an image"),
    ],
)
def test_a_wrong_yaml_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "captions.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        caption_reader(None, tmp_path, NAMES)


def test_every_name_and_caption_of_a_yaml_file_is_text_and_tags_make_no_objects(tmp_path: Path) -> None:
    content = "001: no\n'2': 1.50\nthree: [yes, {text: 2024-01-01, weight: 3}]\nfour: null\nfive: !!python/name:os x\n"
    (tmp_path / "captions.yml").write_text(content, encoding="utf-8")
    reader = caption_reader(None, tmp_path, ["001.png"])
    read = {name: list(reader(name)) for name in ("001.png", "2.png", "three.png", "four.png", "five.png")}
    expected = [["no"], ["1.50"], ["yes", "2024-01-01"], [], ["x"]]
    assert list(read.values()) == expected
    assert weights_of(reader, "three.png") == (1.0, 3.0)


def test_aliases_that_stand_for_each_other_billions_of_times_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["l0: &l0 [x, x]"] + [f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 60)]
    (tmp_path / "captions.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'l1': .* is no caption"):
        caption_reader(None, tmp_path, ["l0.png"])


def test_captions_may_have_weights() -> None:
    table = {"a": ["plain", {"text": "often", "weight": 2.5}], "b": [{"caption": "x", "weight": 2}], "c": ["y", "z"]}
    reader = caption_reader(table, Path(), ["a.png", "b.png"])
    assert reader("a.png") == ["plain", "often"]
    assert weights_of(reader, "a.png") == (1.0, 2.5)
    assert [weights_of(reader, name) for name in ("b.png", "c.png", "gone.png")] == [None] * 3
    assert weights_of(lambda name: ["x"], "a.png") is None


def test_what_a_folder_has_is_read_json_first_then_yaml_then_text(tmp_path: Path) -> None:
    read = lambda: list(caption_reader(None, tmp_path, ["a.png"])("a.png"))  # noqa: E731
    steps = [
        ("a.txt", "text"),
        ("only.yml", "a: only yaml"),
        ("captions.yaml", "a: yaml of that name"),
        ("only.json", '{"a": "only json"}'),
        ("captions.json", '{"a": "json of that name"}'),
    ]
    seen = []
    for name, content in steps:
        (tmp_path / name).write_text(content, encoding="utf-8")
        seen.append(read())
    assert seen == [["text"], ["text"], ["yaml of that name"], ["yaml of that name"], ["json of that name"]]
    (tmp_path / "a.txt").unlink()
    tables = {"captions.json": "json of that name", "only.json": "only json", "captions.yaml": "yaml of that name"}
    for name, content in tables.items():
        assert read() == [content]
        (tmp_path / name).unlink()


def test_two_tables_of_other_names_and_hidden_ones_leave_the_text_files_in_charge(tmp_path: Path) -> None:
    for name in ("x.json", "y.json", "._captions.json", "._captions.yaml"):
        (tmp_path / name).write_text("not read", encoding="utf-8")
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    assert caption_reader(None, tmp_path, NAMES)("a.png") == ["text"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_any_editor_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("猫, 🐈\r\nsecond\r\n".encode(encoding))
    assert SidecarCaptions(tmp_path)("a.png") == ["猫, 🐈\nsecond"]
    assert SidecarCaptions(tmp_path, per_line=True)("a.png") == ["猫, 🐈", "second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ok \xff", r"a.txt is not UTF-8 \(invalid start byte at byte 3\); save it as UTF-8"),
        (b"\xef\xbb\xbfok \xff", r"a.txt is not UTF-8 \(invalid start byte at byte 6\)"),
        (b"\xff\xfea\x00b", r"a.txt is not UTF-16 \(truncated data at byte 4\)"),
    ],
)
def test_an_encoding_error_names_file_and_byte(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SidecarCaptions(tmp_path)("a.png")


def test_text_files_may_have_another_suffix_and_lie_in_subfolders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.c.caption").write_text("one\n\n two \n", encoding="utf-8")
    reader = caption_reader(SidecarCaptions(per_line=True, suffix=".caption"), tmp_path, NAMES)
    assert reader("sub/b.c.jpg") == ["one", "two"]
    assert reader("a.png") == []
    with pytest.raises(ValueError, match=r"suffix: '/../x.txt' is no suffix"):
        SidecarCaptions(suffix="/../x.txt")


@pytest.mark.parametrize(
    ("options", "name", "caption"),
    [
        ({}, "sub/red_car-old.png", ["red car old"]),
        ({"separators": ""}, "red_car.png", ["red_car"]),
        ({"strip_numbers": True}, "012_red-car_(3).png", ["red car"]),
        ({"strip_numbers": True}, "3. gpt4 (1).tar.png", ["gpt4 (1).tar"]),
        ({"strip_numbers": True}, "0001.png", []),
        ({}, "0001.png", ["0001"]),
        ({"of": "folder"}, "x/fluffy_dog/1.png", ["fluffy dog"]),
        ({"of": "folder"}, "1.png", []),
    ],
)
def test_the_name_of_a_file_can_be_its_caption(options: dict, name: str, caption: list) -> None:
    assert caption_reader(FilenameCaptions(**options), Path(), [name])(name) == caption


def test_the_first_reader_that_has_a_caption_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    table = TableCaptions({"猫": ["x", {"text": "y", "weight": 4}]})
    reader = caption_reader(FirstCaptions([table, None, FilenameCaptions()]), tmp_path, NAMES)
    assert [list(reader(name)) for name in NAMES] == [["a"], ["b.c"], ["x", "y"]]
    assert weights_of(reader, "猫.webp") == (1.0, 4.0)
    assert weights_of(reader, "a.png") is None


def test_a_table_tells_which_of_its_names_are_those_of_no_image() -> None:
    assert TableCaptions({"a": "x", "zebra": "y"}).bind(Path(), NAMES).unmatched == ["zebra"]


def test_readers_can_be_named_in_a_config(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a_b.png")
    (tmp_path / "a_b.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "t.yaml").write_text("a_b: three\n", encoding="utf-8")
    options = {
        "SidecarCaptions": {"per_line": True},
        "FilenameCaptions": {},
        "TableCaptions": {"captions": str(tmp_path / "t.yaml")},
        "FirstCaptions": {"readers": [{"b": None, "a_b": ["four", {"text": "five", "weight": 2}]}]},
    }
    read = []
    for name, given in options.items():
        captions = {"_target_": f"hcpdiff.data.captions.{name}", **given}
        source = build({"_target_": "hcpdiff.data.FolderSource", "path": str(tmp_path), "captions": captions})
        read.append(list(source.captions(0)))
    assert read == [["one", "two"], ["a b"], ["three"], ["four", "five"]]


def test_a_table_in_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x.csv is neither .json nor .yaml; .* use hcpdiff.data.TableSource"):
        caption_reader(tmp_path / "x.csv", tmp_path, NAMES)


def test_a_missing_caption_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"captions: nothing at .*gone\.json"):
        caption_reader(tmp_path / "gone.json", tmp_path, NAMES)
