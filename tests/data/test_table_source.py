from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hcpdiff.data.scan import scan
from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.cells import Cells
from hcpdiff.data.sources.table import TableSource

ROWS = [
    {"image": "a.png", "caption": "a red one", "width": 40, "height": 30},
    {"image": "sub/b.png", "caption": 'a "green", one\nof two lines', "width": 30, "height": 40},
    {"image": "c č.png", "caption": "modrý", "width": 20, "height": 20},
]
FORMATS = [".json", ".jsonl", ".yaml", ".csv", ".tsv", ".parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row, color in zip(ROWS, ("red", "green", "blue"), strict=True):
        path = tmp_path / row["image"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (row["width"], row["height"]), color).save(path)
    return tmp_path


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    """The same rows in any format."""
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    else:
        dump: dict[str, Callable[[Any], str]] = {
            ".json": lambda rows: json.dumps(rows, indent=1),
            ".jsonl": lambda rows: "\n\n".join(map(json.dumps, rows)),
            ".yaml": lambda rows: yaml.safe_dump(rows, allow_unicode=True, sort_keys=False),
        }
        path.write_text(dump[suffix](rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_source(folder: Path, suffix: str) -> None:
    source = TableSource(write(folder, suffix, ROWS), width="width", height="height")
    assert isinstance(source, Source)
    assert [source.key(i) for i in range(len(source))] == [row["image"] for row in ROWS]
    assert [source.captions(i) for i in range(3)] == [[row["caption"]] for row in ROWS]
    assert source.sizes().tolist() == [[30, 40], [40, 30], [20, 20]]
    assert [source.size(i) for i in range(3)] == [(30, 40), (40, 30), (20, 20)]
    image = source.load(1).image
    assert (image.size, image.getpixel((5, 5))) == ((30, 40), (0, 128, 0))
    assert source.caption_weights(0) is None


def test_without_columns_of_sizes_headers_are_read(folder: Path) -> None:
    source = TableSource(write(folder, ".jsonl", ROWS))
    assert source.sizes() is None
    assert source.size(1) == (40, 30)


def test_a_cell_without_a_size_is_read_from_the_file(folder: Path) -> None:
    rows = [{**ROWS[0], "width": None, "height": None}, ROWS[1]]
    for suffix in (".csv", ".json"):
        source = TableSource(write(folder, suffix, rows), width="width", height="height")
        assert source.sizes().tolist() == [[0, 0], [40, 30]]
        assert source.size(0) == (30, 40)


def test_a_size_that_is_not_that_of_the_file_is_an_error_when_it_is_loaded(folder: Path) -> None:
    source = TableSource(
        write(folder, ".csv", [{**ROWS[0], "width": 30, "height": 40}]), width="width", height="height"
    )
    with pytest.raises(ValueError, match=r"table\.csv says it is 40 high and 30 wide, the file is 30 x 40"):
        source.load(0)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_an_object_of_names_names_the_images(folder: Path, suffix: str) -> None:
    named = {row["image"]: {"caption": row["caption"]} for row in ROWS}
    path = folder / f"named{suffix}"
    path.write_text(json.dumps(named) if suffix == ".json" else yaml.safe_dump(named, sort_keys=False))
    source = TableSource(path)
    assert [source.key(i) for i in range(3)] == [row["image"] for row in ROWS]
    assert source.captions(2) == ["modrý"]


def test_several_captions_come_with_their_weights(folder: Path) -> None:
    rows = [
        {"image": "a.png", "short": "red", "long": ["a red sheet", "", "paper"], "w": 2, "ws": [1, 5, 0.5]},
        {"image": "sub/b.png", "short": None, "long": None, "w": None, "ws": 3},
    ]
    source = TableSource(write(folder, ".jsonl", rows), caption=["short", "long"], caption_weight=["w", "ws"])
    assert source.captions(0) == ["red", "a red sheet", "paper"]
    assert source.caption_weights(0) == [2.0, 1.0, 0.5]
    assert source.captions(1) == source.caption_weights(1) == []


def test_repeats_masks_and_condition_images_are_columns(folder: Path) -> None:
    Image.new("L", (4, 3), 128).save(folder / "mask.png")
    rows = [
        {**ROWS[0], "repeat": 1.5, "mask": "mask.png", "edges": "a.png"},
        {**ROWS[1], "repeat": 2, "mask": None, "edges": "sub/b.png"},
    ]
    for suffix in (".csv", ".json"):
        source = TableSource(
            write(folder, suffix, rows), repeat="repeat", loss_mask="mask", inputs={"control_image": "edges"}
        )
        assert source.repeat.tolist() == [1.5, 2.0]
        record = source.load(0)
        assert record.loss_mask.shape == (3, 4)
        assert record.loss_mask[0, 0] == pytest.approx(128 / 255)
        assert record.inputs["control_image"].getpixel((0, 0)) == (255, 0, 0)
        assert source.load(1).loss_mask is None


def test_the_fingerprint_is_that_of_the_content(folder: Path) -> None:
    rows = [{"image": "a.png"}, {"image": "copy.png"}, {"image": "sub/b.png"}]
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    path = write(folder, ".json", rows)
    source = TableSource(path, caption=None)
    assert source.fingerprint(0) == source.fingerprint(1) != source.fingerprint(2)
    assert TableSource(path, caption=None, background=[0, 0, 0]).fingerprint(0) != source.fingerprint(0)


def test_rows_of_one_image_have_keys_of_their_own(folder: Path) -> None:
    source = TableSource(write(folder, ".json", [ROWS[0], ROWS[1], ROWS[0], ROWS[0]]))
    assert [source.key(i) for i in range(4)] == ["a.png", "sub/b.png", "a.png#1", "a.png#2"]


def test_images_may_lie_in_another_folder_or_anywhere_by_absolute_path(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = [{"image": "a.png"}, {"image": str(folder / "sub" / "b.png")}, {"image": "sub\\b.png"}]
    source = TableSource(write(elsewhere, ".csv", rows), images=folder, caption=None)
    assert [source.size(i) for i in range(3)] == [(30, 40), (40, 30), (40, 30)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_column_names_those_that_exist(folder: Path, suffix: str) -> None:
    source = TableSource(write(folder, suffix, ROWS), caption="captoin")
    with pytest.raises(
        ValueError, match=r"path: no column 'captoin' in table.*did you mean 'caption'.*'image', 'caption'"
    ):
        len(source)
    with pytest.raises(ValueError, match=r"path: no column 'words' in table\.\w+\. It has 'image', 'caption'"):
        len(TableSource(write(folder, suffix, ROWS), caption="words"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"image": "a.png"}\n{"image": \n', r"t\.jsonl, line 2: not valid JSON"),
        ("t.jsonl", '{"image": "a.png"}\n[1]\n', r"t\.jsonl, line 2: \[1\] is no row"),
        ("t.json", '[\n{"image": "a.png"},\n{"image" "b"}]', r"t\.json, line 3: not valid JSON: Expecting ':'"),
        ("t.json", '[\n{"image": "a.png"}\n', r"t\.json, line 3: not valid JSON: expected ','"),
        ("t.json", '[{"image": "a.png"}]\n x', r"t\.json, line 1: not valid JSON: something follows the end"),
        ("t.json", '{\n"a.png": {},\n"b.png": "red"}', r"t\.json, line 3: 'red' is no row"),
        ("t.json", '"a.png"', "should hold a list of rows"),
        ("t.json", "", "should hold a list of rows"),
        ("t.json", "[]", "has no rows"),
        ("t.yaml", "- {image: a.png}\n- {image: [}\n", r"t\.yaml, line 2: not valid YAML"),
        ("t.yaml", "- {image: a.png}\n- b\n", r"t\.yaml, line 2: 'b' is no row"),
        ("t.yaml", "- !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("t.csv", "image,caption\na.png,x\nb.png,x,y\n", r"t\.csv, line 3: it has 3 cells, the header 2"),
        ("t.csv", 'image,caption\na.png,"x"y\n', r"t\.csv, line 2: "),
        ("t.csv", "image,caption,image\na.png,x,b.png\n", "has 2 columns 'image'"),
        ("t.csv", "image\n", "has no rows"),
        ("t.csv", "image\n../../etc/a.png\n", r"t\.csv, line 2: image: '\.\./\.\./etc/a\.png' leads out of the folder"),
        ("t.csv", "image\nx/../../a.png\n", "leads out of the folder"),
        ("t.csv", "image\n..\\a.png\n", "leads out of the folder"),
        ("t.csv", "image\nhttps://x.org/a.png\n", "is an address, and nothing is downloaded"),
        ("t.jsonl", '{"image": "a.png"}\n{"imag": "b.png"}\n', r"t\.jsonl, line 2: image: None is no name of a file"),
        ("t.jsonl", '{"image": ["a.png"]}\n', r"line 1: image: \['a\.png'\] is no name of a file"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        len(TableSource(tmp_path / name, caption=None))


@pytest.mark.parametrize(
    ("cell", "option", "message"),
    [
        (-1, "width", "row 1: other: -1 is no number above 0|line 1: other: -1 is no number above 0"),
        (1.5, "width", "1.5 is no whole number of pixels"),
        (0, "repeat", "0 is no number above 0"),
        ("often", "repeat", "'often' is no number above 0"),
        (True, "repeat", "True is no number above 0"),
        (float("inf"), "repeat", "inf is no number above 0"),
        ({"a": 1}, "caption", "is no caption"),
        (7, "caption", "7 is no caption"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, cell: object, option: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.png", "other": cell}))
    options = {"caption": None, option: "other"} | ({"height": "other"} if option == "width" else {})
    with pytest.raises(ValueError, match=message):
        len(TableSource(tmp_path / "t.jsonl", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": "w"}, "width: sizes need both columns"),
        ({"repeat": 0}, "repeat: 0 would show no image"),
        ({"caption_weight": ["a", "b"]}, "caption_weight: 2 columns for 1"),
        ({"background": [1, 2]}, "background: .* is no RGB colour"),
        ({"mask_scale": "log"}, "mask_scale: 'log' is unknown"),
    ],
)
def test_wrong_settings_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableSource(write(folder, ".csv", ROWS), **options)


def test_missing_files_and_unknown_formats_are_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: no file at .*nope\.csv"):
        TableSource(folder / "nope.csv")
    with pytest.raises(FileNotFoundError, match="images: no folder at nowhere"):
        TableSource(write(folder, ".csv", ROWS), images="nowhere")
    with pytest.raises(ValueError, match=r"a\.png is no table that can be read; use one of \.json"):
        TableSource(folder / "a.png")
    (folder / "latin.csv").write_bytes("image,caption\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv is not UTF-8 .*; save it as UTF-8"):
        len(TableSource(folder / "latin.csv"))
    (folder / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as Parquet"):
        len(TableSource(folder / "broken.parquet"))


def test_a_spreadsheet_with_semicolons_and_a_byte_order_mark_is_read(folder: Path) -> None:
    (folder / "t.csv").write_text('\ufeffimage;caption\r\na.png;"x; y, z"\r\n', encoding="utf-8", newline="")
    source = TableSource(folder / "t.csv")
    assert (source.key(0), source.captions(0)) == ("a.png", ["x; y, z"])


def png(color: str, size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_may_hold_the_images_themselves(tmp_path: Path, struct: bool) -> None:
    pytest.importorskip("pyarrow")
    colors = ["red", "lime", "blue", "white", "black"]
    rows = [
        {"picture": {"bytes": png(c), "path": None} if struct else png(c), "mask": png("gray"), "text": c}
        for c in colors
    ]
    path = write(tmp_path, ".parquet", rows)
    source = TableSource(path, image="picture", caption="text", loss_mask="mask", inputs={"same": "picture"})
    assert (len(source), len({source.key(i) for i in range(5)})) == (5, 5)
    assert source.size(4) == (6, 8)
    for index in (3, 0, 4, 1):
        record = pickle.loads(pickle.dumps(source)).load(index)
        assert record.image.getpixel((0, 0)) == Image.new("RGB", (1, 1), colors[index]).getpixel((0, 0))
        assert record.inputs["same"].size == (8, 6)
        assert record.loss_mask.shape == (6, 8)
    assert len({source.fingerprint(i) for i in range(5)}) == 5
    assert len(TableSource(path, image="picture", caption=None)) == 5


def test_parquet_may_name_files_in_its_structs(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"image": {"bytes": None, "path": "a.png"}}, {"image": {"bytes": None, "path": "../a.png"}}]
    source = TableSource(write(folder, ".parquet", rows), caption=None)
    assert source.size(0) == (30, 40)
    with pytest.raises(ValueError, match="leads out of the folder"):
        source.size(1)


def test_a_large_table_stays_compact(tmp_path: Path) -> None:
    """20,000 rows of a name, a caption of 60 letters and a size: 110 bytes of content each."""
    count = 20_000
    with (tmp_path / "t.csv").open("w") as file:
        file.write("image,caption,width,height\n")
        file.writelines(f"folder/{i:08}.jpg,{'x' * 60},640,480\n" for i in range(count))
    tracemalloc.start()
    source = TableSource(tmp_path / "t.csv", width="width", height="height")
    assert len(source) == count
    assert source.sizes().shape == (count, 2)
    assert source.key(count - 1) == f"folder/{count - 1:08}.jpg"
    kept = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert kept < 160  # bytes per row; a dict of a row alone takes 230


def test_cells_keep_every_kind_of_value() -> None:
    values = ["text", "", "[1]", "null", "\ud800", "🐈", None, 1, -2.5, True, ["a", None, 2]]
    cells = Cells(values)
    assert [cells[i] for i in range(len(cells))] == values
    assert Cells(["a", "b", "a", "c", "a", "b"]).occurrences().tolist() == [0, 0, 1, 0, 2, 1]
    assert Cells([]).occurrences().dtype == np.int32
    with pytest.raises(IndexError):
        cells[len(values)]


def test_what_an_earlier_run_learned_of_the_files_is_used_again(folder: Path, tmp_path_factory: Any) -> None:
    path, index = write(folder, ".csv", [*ROWS, {**ROWS[0], "image": "gone.png"}]), tmp_path_factory.mktemp("index")
    for row in ROWS:
        os.utime(folder / row["image"], ns=(10**18, 10**18))
    source = TableSource(path)
    items, bad = scan([source], "data.main.source", index=index)
    hashes = [source.fingerprint(i) for i in range(3)]
    source._hash_path.__self__.save()
    for row in ROWS:  # the same stamp, so it is not looked at
        (folder / row["image"]).write_bytes(b"x" * (folder / row["image"]).stat().st_size)
        os.utime(folder / row["image"], ns=(10**18, 10**18))
    again = TableSource(path)
    found, _ = scan([again], "data.main.source", index=index)
    assert found.sizes.tolist() == items.sizes.tolist() == [[30, 40], [40, 30], [20, 20]]
    assert [again.fingerprint(i) for i in range(3)] == hashes
    assert [file.key for file in bad] == ["gone.png"]
