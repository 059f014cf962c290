from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hcpdiff.data.scan import BadFile
from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.huggingface import HuggingFaceSource
from hcpdiff.data.sources.streamed import HuggingFaceStream, StreamSource

datasets = pytest.importorskip("datasets")

COLORS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


def jpeg(color: tuple[int, int, int], size: tuple[int, int], orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "jpeg", exif=exif, quality=95)
    return file.getvalue()


def dataset() -> Any:
    """Three images of 20 x 10 and one that is turned by its EXIF entry."""
    rows = {
        "image": [
            {"bytes": jpeg(color, (20, 10), 6 if name == "blue" else 1), "path": None} for name, color in COLORS.items()
        ],
        "mask": [None, {"bytes": jpeg((255, 255, 255), (4, 2)), "path": None}, None],
        "text": ["a red one", " a lime one ", ""],
        "more": [["x", "y"], [], ["z"]],
        "label": [0, 1, 0],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "text": datasets.Value("string"),
            "more": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(params=["disk", "dict", "parquet", "folder of parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The dataset in all the ways that it may lie on a disk."""
    if request.param == "disk":
        dataset().save_to_disk(tmp_path / "d")
        return tmp_path / "d"
    if request.param == "dict":
        datasets.DatasetDict({"train": dataset(), "test": dataset().select([0])}).save_to_disk(tmp_path / "d")
        return tmp_path / "d"
    (tmp_path / "d").mkdir()
    dataset().to_parquet(str(tmp_path / "d" / "train.parquet"))
    return tmp_path / "d" / "train.parquet" if request.param == "parquet" else tmp_path / "d"


def test_a_dataset_is_a_source(path: Path) -> None:
    source = HuggingFaceSource(path, loss_mask="mask", inputs={"control_image": "image"})
    assert isinstance(source, Source)
    assert (len(source), source.key(2)) == (3, "train/0000002")
    assert [source.size(i) for i in range(3)] == [(10, 20), (10, 20), (20, 10)]
    assert [source.captions(i) for i in range(3)] == [["a red one"], ["a lime one"], []]
    for index, color in enumerate(COLORS.values()):
        record = source.load(index)
        assert max(abs(a - b) for a, b in zip(record.image.getpixel((5, 5)), color, strict=True)) <= 3  # JPEG is lossy
        assert record.inputs["control_image"].size == record.image.size == source.size(index)[::-1]
        assert (record.loss_mask is None) == (index != 1)
    assert len({source.fingerprint(i) for i in range(3)}) == 3


def test_other_processes_can_use_it(path: Path) -> None:
    source = pickle.loads(pickle.dumps(HuggingFaceSource(path)))
    assert source.load(0).image.size == (20, 10)


def test_a_part_of_a_split_is_a_split(path: Path) -> None:
    source = HuggingFaceSource(path, split="train[1:]")
    assert [source.captions(i) for i in range(len(source))] == [["a lime one"], []]


def test_lists_and_class_labels_are_captions(path: Path) -> None:
    source = HuggingFaceSource(path, caption=["label", "more"])
    assert source.captions(0) == ["cat", "x", "y"]
    assert HuggingFaceSource(path, caption=None).captions(0) == []


def test_images_are_read_from_a_folder_by_name(tmp_path: Path) -> None:
    for name, color in COLORS.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6), color).save(tmp_path / name / "a.png")
    source = HuggingFaceSource(tmp_path, caption="label")
    assert sorted(source.captions(i)[0] for i in range(3)) == sorted(COLORS)
    assert source.size(0) == (6, 8)


def test_mistakes_are_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^path: no column 'texts' in .*did you mean 'text'"):
        len(HuggingFaceSource(path, caption="texts"))
    with pytest.raises(ValueError, match="column 'label' holds int64, not images"):
        len(HuggingFaceSource(path, image="label"))
    with pytest.raises(ValueError, match=r"^split( or path)?: .*'tset'"):
        len(HuggingFaceSource(path, split="tset"))
    (path.parent / "notes.txt").write_text("no table", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^path: no format '\.txt' in what can be read\. It has '\.parquet'"):
        len(HuggingFaceSource(path.parent / "notes.txt"))
    with pytest.raises(FileNotFoundError, match=r"path: no dataset at \./nowhere"):
        len(HuggingFaceSource("./nowhere"))
    with pytest.raises(ValueError, match="repeat: 0"):
        HuggingFaceSource(path, repeat=0)


def test_code_of_a_dataset_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError)):
        len(HuggingFaceSource(folder))
    assert not (tmp_path / "ran").exists()


def test_the_stream_gives_what_the_source_gives(path: Path) -> None:
    options = {"caption": ["text", "label"], "loss_mask": "mask"}
    source, stream = HuggingFaceSource(path, **options), HuggingFaceStream(path, **options)
    assert isinstance(stream, StreamSource)
    for start in (0, 2, 3):
        items = list(stream.iterate(start))
        assert not any(isinstance(item, BadFile) for item in items)
        assert [item.key for item in items] == [source.key(i) for i in range(start, 3)]
        for number, item in enumerate(items, start):
            assert item.size == source.size(number)
            assert item.captions == source.captions(number)
            assert item.load(None).image.tobytes() == source.load(number).image.tobytes()


def test_a_stream_names_a_missing_column_and_lists_empty_cells(path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'texts'.*did you mean 'text'"):
        next(iter(HuggingFaceStream(path, caption="texts").iterate(0)))
    found = list(HuggingFaceStream(path, image="mask").iterate(0))
    assert [isinstance(item, BadFile) for item in found] == [True, False, True]
    assert "the cell of column 'mask' is empty" in found[0].reason
