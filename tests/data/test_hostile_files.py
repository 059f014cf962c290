from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, UnidentifiedImageError

from hcpdiff.data import Dataset, FixedBucket, FolderSource
from hcpdiff.data.images.headers import image_size
from hcpdiff.data.images.reading import UnreadableImageError, read_alpha, read_grey, read_rgb, read_size
from tests.data import hostile

# Pillow warns of what it mends: corrupt EXIF, sizes that nearly are bombs
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


NAMES = [
    "new\nline",
    "carriage\rreturn\ttab",
    "\x1b[31mred\x1b[0m",
    "\x7f\x01control",
    "emoji 😀👩‍🚀",
    "caf\u00e9",
    unicodedata.normalize("NFD", "caf\u00e9"),
    "\u202egnp.exe",
    "zero\u200bwidth",
    "-rf",
    "--help",
    " leading and trailing ",
    "'quotes' \"and\" `ticks`",
    "$(reboot); rm -rf ~ | & > #",
    "%s %d {caption} {0} {",
    "CON",
    "..almost hidden",
    "a" * 240,
    "\u6f22" * 80,
    "back\\slash",
    "*?[a-z]",
]
CAPTIONS = [
    b"",
    b"\n\n\n",
    b"a cat",
    b"\xef\xbb\xbfa cat with a byte order mark",
    "un chat, caf\u00e9".encode(),
    b"a\r\ncaption\rof\nlines",
    b"{caption} {pt1} {} {{ }",
    b",,, ,,",
    b"%s \\n \x00 \x1b[31m",
    "😀 \u202e".encode() * 50,
    b"tag, " * 20_000,
]


def numbered(kind: int) -> range:
    """The numbers of the broken files of one format."""
    return range(kind, hostile.COUNT, len(hostile.FORMATS))


@pytest.mark.parametrize("kind", range(len(hostile.FORMATS)), ids=hostile.FORMATS)
def test_each_reader_gives_an_image_or_an_error_that_names_the_file(kind: int, tmp_path: Path) -> None:
    for number in numbered(kind):
        suffix, content = hostile.image_of(number)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(content)
        size, header = tried(read_size, path), tried(image_size, path)
        image, alpha, grey = tried(read_rgb, path), tried(read_alpha, path), tried(read_grey, path)
        if isinstance(image, Image.Image):
            assert image.mode == "RGB", number
            assert size == header == (image.height, image.width), number
            assert isinstance(grey, Image.Image), number
            assert (grey.mode, grey.size) == ("L", image.size), number
            assert alpha is None or (alpha.mode, alpha.size) == ("L", image.size), number
            small = read_rgb(path, at_least=(4, 4))
            assert min(small.size) >= min(8, *image.size), number
        else:
            assert isinstance(alpha, OSError), number
            assert isinstance(grey, OSError), number


def tried(read: Callable[[Path], Any], path: Path) -> Any:
    """What it gives, or the error for which it gives nothing."""
    try:
        return read(path)
    except (UnreadableImageError, UnidentifiedImageError) as error:
        told = error
    assert str(told).startswith(f"{path.name}: ")
    assert len(str(told)) > len(path.name) + 10
    return told


def test_a_dataset_of_broken_files_lists_each_and_trains_on_the_rest(tmp_path: Path) -> None:
    for number in range(hostile.COUNT):
        suffix, content = hostile.image_of(number)
        write(tmp_path, number, suffix, content)
    good = len(os.listdir(tmp_path))
    for number, name in enumerate(NAMES):
        write(tmp_path, number, "png", png(), place="good", stem=name)
    listed, lines = prepared(FolderSource(tmp_path))
    names = set(FolderSource(tmp_path).files)
    assert len(names) > good // 2
    shown = set()
    for number in range(listed.batches_per_epoch):
        batch = listed.batch(number)
        assert batch.images.shape[1:] == (3, 16, 16)
        assert torch.isfinite(batch.images).all()
        assert batch.images.abs().max() <= 1
        shown.update(batch.keys)
    bad = {file.key for file in listed.bad}
    assert len(bad) == len(listed.bad)
    assert shown | bad == names
    assert not shown & bad
    assert {name for name in names if name.startswith("good/")} <= shown
    for file in listed.bad:
        assert len(file.reason) > 10
        assert "Traceback" not in file.reason
        assert file.reason.isprintable(), file.reason
    assert sum("is left out" in line for line in lines) == len(bad)


def write(folder: Path, number: int, suffix: str, content: bytes, *, place: str = "", stem: str | None = None) -> None:
    """An image of a hostile name, with an odd caption; not if the file system refuses the name."""
    here = folder / place if place else folder / f"sub{number // len(NAMES)}"
    here.mkdir(exist_ok=True)
    name = NAMES[number % len(NAMES)] if stem is None else stem
    try:
        (here / f"{name}.{suffix}").write_bytes(content)
        (here / f"{name}.txt").write_bytes(CAPTIONS[number % len(CAPTIONS)])
    except OSError:
        pytest.skip(f"this file system has no name {name!r}")


def png() -> bytes:
    return hostile.sound("png", 0)


def prepared(source: FolderSource) -> tuple[Dataset, list[str]]:
    """A dataset that bears any number of bad files, and its log."""
    lines: list[str] = []
    dataset = Dataset(source, FixedBucket(16), batch_size=16, max_bad=10 * hostile.COUNT)
    dataset.prepare(seed=0, name="main", multiple_of=8, log=lines.append)
    return dataset, lines


def test_names_that_are_no_text_are_listed_or_work(tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
            file.write(png())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "good.png").write_bytes(png())
    dataset, lines = prepared(FolderSource(tmp_path))
    shown = {key for number in range(dataset.batches_per_epoch) for key in dataset.batch(number).keys}
    assert "good.png" in shown
    assert len(shown) + len(dataset.bad) == 2
    "".join(lines).encode()  # the log can be written


@pytest.mark.parametrize("caption", CAPTIONS, ids=range(len(CAPTIONS)))
def test_any_caption_becomes_a_prompt_or_a_named_error(caption: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_bytes(caption)
    prompt = prepared(FolderSource(tmp_path))[0].batch(0).prompts[0]
    prompt.positive.encode()
    assert "\ufeff" not in prompt.positive


def test_captions_that_are_no_text_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\xd8 broken")
    dataset, _ = prepared(FolderSource(tmp_path))
    keys = {key for number in range(dataset.batches_per_epoch) for key in dataset.batch(number).keys}
    assert keys == {"b.png"}
    assert [file.key for file in dataset.bad] == ["a.png"]
    assert "a.txt" in dataset.bad[0].reason


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"path: no images in .*empty; put \.png"):
        len(FolderSource(tmp_path / "empty"))
    (tmp_path / "a.png").write_bytes(png())
    assert FolderSource(tmp_path).files == ["a.png"]


def test_a_folder_without_read_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # root may read everything, so the right is taken away here
        if "secret" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    dataset, _ = prepared(FolderSource(tmp_path))
    assert set(dataset.batch(0).keys) == {"a.png"}
    assert ["secret" in file.key and "Permission denied" in file.reason for file in dataset.bad] == [True]
    with pytest.raises(ValueError, match=r"secret.*Permission denied"):
        len(FolderSource(tmp_path / "secret"))


def test_links_that_go_round_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.png").write_bytes(png())
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "a" / "self.png").symlink_to(tmp_path / "a" / "self.png")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset, _ = prepared(FolderSource(tmp_path / "a"))
    assert set(dataset.batch(0).keys) == {"b/x.png"}
    assert {file.key for file in dataset.bad} <= {"self.png", "gone.png"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_folder_and_a_pipe_that_look_like_images_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "good.png").write_bytes(png())
    os.mkfifo(tmp_path / "pipe.png")
    dataset, _ = prepared(FolderSource(tmp_path))
    assert set(dataset.batch(0).keys) == {"good.png"}
