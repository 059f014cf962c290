from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcpdiff.data import FolderSource, Source
from hcpdiff.data.scan import scan
from hcpdiff.data.sources.class_folder import ClassFolderSource
from hcpdiff.data.sources.folder import mask_weights


def forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the right to read a folder, from the administrator too."""
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_is_a_source_with_sorted_relative_paths_as_keys(images: Path) -> None:
    source = FolderSource(images)
    assert isinstance(source, Source)
    keys = [source.key(i) for i in range(len(source))]
    assert keys == sorted(keys)
    assert "sub/00.png" in keys
    assert source.size(keys.index("02.png")) == (60, 30)
    assert source.captions(keys.index("sub/03.png")) == ["picture 3, red, blue"]
    assert source.load(0).image.mode == "RGB"


def test_subfolders_can_be_left_out(images: Path) -> None:
    assert not any("/" in name for name in FolderSource(images, recursive=False).files)


def test_odd_names_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    names = ["žluťoučký kůň.png", "猫 1.PNG", "v1.2.png", "a#b%20'c.png", "#1.png"]
    for name in [*names, ".hidden.png", "notes.md"]:
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="png")
    (tmp_path / "猫 1.txt").write_text("ネコ", encoding="utf-8")
    (tmp_path / "v1.2.txt").write_text("\ufeffversion two", encoding="utf-8")
    source = FolderSource(tmp_path)
    assert sorted(source.files) == sorted(names)
    assert source.captions(source.files.index("猫 1.PNG")) == ["ネコ"]
    assert source.captions(source.files.index("v1.2.png")) == ["version two"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.symlink(tmp_path, tmp_path / "again")
    assert FolderSource(tmp_path).files == ["a.png"]


def test_a_missing_folder_names_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: no folder at .*nowhere"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"control_images: no folder at .*nowhere"):
        FolderSource(tmp_path, control_images=tmp_path / "nowhere")


def test_an_empty_folder_says_what_should_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: no images in .*; put \.png"):
        len(FolderSource(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 0}, "repeat: 0 would show no image"),
        ({"background": [255, 255]}, "background: .* is no RGB colour"),
        ({"repeat": float("nan")}, "repeat: nan would show no image"),
        ({"mask_scale": "log"}, "mask_scale: 'log' is unknown"),
        ({"alpha": "mask"}, "alpha: 'mask' is unknown"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FolderSource(tmp_path, **options)


def test_control_images_and_masks_are_found_by_stem_and_kept_out_of_the_images(images: Path) -> None:
    (images / "control" / "sub").mkdir(parents=True)
    (images / "masks").mkdir()
    for name in FolderSource(images).files:
        Image.new("RGB", (10, 10), "red").save((images / "control" / name).with_suffix(".jpg"))
    Image.new("L", (5, 5), 255).save(images / "masks" / "01.png")
    source = FolderSource(images, control_images=images / "control", loss_masks=images / "masks")
    assert len(source) == 11
    record = source.load(source.files.index("01.png"))
    assert record.inputs["control_image"].size == (10, 10)
    assert record.loss_mask is not None
    assert record.loss_mask.tolist() == np.ones((5, 5)).tolist()
    assert source.load(source.files.index("02.png")).loss_mask is None


def test_an_image_without_its_control_image_is_an_error_that_names_it(images: Path, tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    with pytest.raises(ValueError, match=r"no control image 01\.\* in"):
        FolderSource(images, control_images=tmp_path / "control").load(0)


def test_images_without_a_condition_image_are_left_out_before_a_run_even_if_an_earlier_run_knew_their_sizes(
    images: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    everything, _ = scan([FolderSource(images)], "", index=index)
    (tmp_path / "control").mkdir()
    for name in everything.key(0), everything.key(2):
        path = tmp_path / "control" / name
        path.parent.mkdir(exist_ok=True)
        Image.open(images / name).save(path)
    items, bad = scan([FolderSource(images, control_images=tmp_path / "control")], "", index=index)
    assert [items.key(item) for item in range(len(items))] == [everything.key(0), everything.key(2)]
    assert len(bad) == len(everything) - 2
    assert bad[0].key == everything.key(1)
    assert "no control image" in bad[0].reason


def test_mask_scales() -> None:
    grey = Image.fromarray(np.array([[0, 127, 191, 255]], dtype=np.uint8))
    assert mask_weights(grey, "linear")[0].tolist() == pytest.approx([0, 127 / 255, 191 / 255, 1])
    assert mask_weights(grey, "boost")[0].tolist() == pytest.approx([0, 1, 3, 5])


def test_the_fingerprint_is_of_the_content_and_not_of_the_name(images: Path) -> None:
    before = FolderSource(images).fingerprint(0)
    (images / "01.png").rename(images / "00 renamed.png")
    assert FolderSource(images).fingerprint(0) == before
    assert FolderSource(images, background=(0, 0, 0)).fingerprint(0) != before
    Image.new("RGB", (48, 40), "red").save(images / "00 renamed.png")
    assert FolderSource(images).fingerprint(0) != before


def test_the_fingerprint_tells_what_transparency_means(images: Path) -> None:
    assert FolderSource(images, alpha="loss_mask").fingerprint(0) != FolderSource(images).fingerprint(0)


def test_transparency_can_be_the_loss_mask(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    picture.putpixel((0, 1), (255, 0, 0, 0))
    picture.putpixel((3, 0), (255, 0, 0, 51))
    picture.save(tmp_path / "a.png")
    picture.convert("RGB").save(tmp_path / "b.png")
    assert FolderSource(tmp_path).load(0).loss_mask is None
    source = FolderSource(tmp_path, alpha="loss_mask", background=(0, 0, 255))
    record = source.load(0)
    assert record.loss_mask is not None
    assert record.loss_mask.tolist() == [[1, 1, 1, pytest.approx(0.2)], [0, 1, 1, 1]]
    assert record.loss_mask.dtype == np.float32
    assert record.image is not None
    assert record.image.getpixel((0, 1)) == (0, 0, 255)
    assert source.load(1).loss_mask is None


def test_transparency_counts_times_the_loss_mask(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "a.png")
    Image.new("L", (2, 2), 51).save(tmp_path / "masks" / "a.png")
    record = FolderSource(tmp_path, alpha="loss_mask", loss_masks=tmp_path / "masks").load(0)
    assert record.loss_mask is not None
    assert record.loss_mask[0, 0] == 0
    assert record.loss_mask.ravel()[1:].tolist() == pytest.approx([0.2] * 15)


def test_stamps_are_those_of_the_files(images: Path) -> None:
    stamps = FolderSource(images).stamps()
    files = [Path(name) for name in stamps.names]
    assert files == sorted(path.absolute() for path in images.rglob("*.png"))
    assert stamps.names[3] == str(files[3])
    assert stamps.mtimes.tolist() == [path.stat().st_mtime_ns for path in files]
    assert stamps.sizes.tolist() == [path.stat().st_size for path in files]


def test_the_order_is_that_of_the_relative_paths(tmp_path: Path) -> None:
    for name in ("b/1.png", "b.png", "b-1.png", "a/z.png", "a/b/c.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert FolderSource(tmp_path).files == ["a/b/c.png", "a/z.png", "b-1.png", "b.png", "b/1.png", "c.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_what_is_no_readable_file_is_bad_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.symlink("nowhere.png", tmp_path / "lost.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(os.fsencode(tmp_path) + b"/caf\xe9.png", format="png")
    items, bad = scan([FolderSource(tmp_path)], "")
    assert [items.key(i) for i in range(len(items))] == ["good.png"]
    reasons = {file.key: file.reason for file in bad}
    assert sorted(reasons) == ["caf\\xe9.png", "loop.png", "lost.png", "pipe.png"]
    assert "not UTF-8; rename it" in reasons["caf\\xe9.png"]
    assert "no regular file" in reasons["pipe.png"]
    assert "No such file" in reasons["lost.png"]
    assert "symbolic links" in reasons["loop.png"]


def test_a_subfolder_without_read_rights_is_bad_and_the_others_are_used(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(images / "sub", monkeypatch)
    items, bad = scan([FolderSource(images)], "")
    assert len(items) == 7
    assert [file.key for file in bad] == ["sub/"]
    assert "Permission denied" in bad[0].reason


def test_folders_without_read_rights_that_are_needed_are_errors(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "masks" / "sub").mkdir(parents=True)
    forbid(images / "masks" / "sub", monkeypatch)
    with pytest.raises(ValueError, match=r"loss_masks: sub/ in .*masks cannot be used: .*Permission denied"):
        FolderSource(images, loss_masks=images / "masks").load(0)
    forbid(images, monkeypatch)
    with pytest.raises(ValueError, match=r"path: .*images cannot be listed: .*Permission denied.*the right to read it"):
        len(FolderSource(images))


def test_captions_of_a_reader_with_weights_are_weighted(images: Path) -> None:
    class Reader:
        def __call__(self, name: str) -> list[str]:
            return [name, "b"]

        def weights(self, name: str) -> list[float]:
            return [3, 1]

    assert FolderSource(images, captions=Reader()).caption_weights(0) == [3, 1]
    assert FolderSource(images).caption_weights(0) is None


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/old/2.png", "dog/1.png", "red fox/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "dog" / "1.txt").write_text("a small dog", encoding="utf-8")
    return tmp_path


def test_class_folders_give_captions_where_images_have_none(animals: Path) -> None:
    def captions(**options: object) -> list[list[str]]:
        source = ClassFolderSource(animals, **options)
        return [list(source.captions(index)) for index in range(len(source))]

    assert captions() == [["cat"], ["cat"], ["a small dog"], ["red fox"]]
    assert captions(class_captions="a {class}")[3] == ["a red fox"]
    assert captions(class_captions={"cat": ["a cat", "one {class}"], "dog": "x"}) == [
        ["a cat", "one cat"],
        ["a cat", "one cat"],
        ["a small dog"],
        ["red fox"],
    ]
    assert captions(captions={}) == [["cat"], ["cat"], ["dog"], ["red fox"]]


def test_class_folders_may_repeat_differently(animals: Path) -> None:
    items, _ = scan([ClassFolderSource(animals, repeat={"cat": 3, "dog": 0.5})], "")
    assert items.repeats.tolist() == [3, 3, 0.5, 1]
    assert scan([ClassFolderSource(animals, repeat=2.5)], "")[0].repeats.tolist() == [2.5] * 4


def test_class_folders_have_the_rest_of_a_folder(animals: Path) -> None:
    source = ClassFolderSource(animals)
    assert isinstance(source, Source)
    assert source.classes == ["cat", "dog", "red fox"]
    assert source.fingerprint(0) == FolderSource(animals).fingerprint(0)
    assert source.size(0) == (8, 8)


def test_mistakes_with_classes_are_named(animals: Path) -> None:
    with pytest.raises(ValueError, match=r"source\.repeat: 'cta' is no class folder of .*; did you mean 'cat'\?"):
        scan([ClassFolderSource(animals, repeat={"cta": 2})], "data.main.source")
    with pytest.raises(ValueError, match=r"class_captions: 'zebra' is no class folder of .*; there are cat, dog"):
        ClassFolderSource(animals, class_captions={"zebra": "x"}).check()
    with pytest.raises(ValueError, match=r"repeat\.cat: 0 would show no image"):
        ClassFolderSource(animals, repeat={"cat": 0})
    Image.new("RGB", (8, 8)).save(animals / "loose.png")
    with pytest.raises(ValueError, match=r"path: loose\.png lies in no class folder of .*; move it into one"):
        scan([ClassFolderSource(animals, captions={"cat/1": "x"})], "")


def test_masks_and_condition_images_of_other_names_are_an_error_and_a_few_that_lack_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hcpdiff.data")
    for name in ("images/a.png", "images/b.png", "other/x.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images, other, masks = (tmp_path / name for name in ("images", "other", "masks"))
    for key in ("control_images", "loss_masks"):
        with pytest.raises(ValueError, match=rf"^{key}: .*other has nothing of the name of an image, e\.g\. a\.png"):
            FolderSource(images, **{key: other}).check()
    FolderSource(images, loss_masks=masks, captions={"a": "x", "z": "of nothing"}).check()
    assert "captions: 1 of them are for no image" in caplog.text
    assert "loss_masks: 1 images have none and count fully, e.g. b.png" in caplog.text
