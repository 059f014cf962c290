from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcpdiff.data import FolderSource, Source
from hcpdiff.data.sources.folder import mask_weights


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
        ({"mask_scale": "log"}, "mask_scale: 'log' is unknown"),
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
