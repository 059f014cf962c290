from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from hcpdiff.data.scan import scan
from hcpdiff.data.sources import shards as shards_module
from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.shards import expand_braces, members, shard_paths, split_name
from hcpdiff.data.sources.webdataset import WebDatasetSource


def picture(color: str = "red", size: tuple[int, int] = (20, 10), kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


def pack(path: Path, files: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two archives of two samples, and one of one."""
    colors = ["red", "lime", "blue", "white", "black"]
    for shard in range(3):
        files = []
        for number in range(2 * shard, min(5, 2 * shard + 2)):
            name = f"dir.v1/{number:04}"
            files += [
                (f"{name}.png", picture(colors[number], (20 + number, 10))),
                (f"{name}.txt", f" caption {number}\n".encode()),
                (f"{name}.json", json.dumps({"tags": [colors[number], "x"], "n": number}).encode()),
                (f"{name}.edges.png", picture("gray", (20 + number, 10))),
            ]
            files += [(f"{name}.mask.png", picture("white", (4, 2)))] if number else []
        pack(tmp_path / f"cats-{shard:03}.tar", files)
    return tmp_path


def test_samples_are_read_in_any_order(shards: Path) -> None:
    source = WebDatasetSource(shards / "cats-{000..002}.tar")
    assert isinstance(source, Source)
    assert [source.key(i) for i in range(len(source))] == [f"cats-{n // 2:03}/dir.v1/{n:04}" for n in range(5)]
    assert [source.size(i) for i in (4, 0, 3)] == [(10, 24), (10, 20), (10, 23)]
    assert [source.captions(i) for i in (3, 1)] == [["caption 3"], ["caption 1"]]
    assert source.load(2).image.getpixel((0, 0)) == (0, 0, 255)
    assert len({source.fingerprint(i) for i in range(5)}) == 5


def test_captions_masks_and_condition_images_are_members(shards: Path) -> None:
    source = WebDatasetSource(
        [shards / "*.tar"], caption=["txt", "json:tags"], loss_mask="mask.png", inputs={"control_image": "edges.png"}
    )
    assert source.captions(1) == ["caption 1", "lime", "x"]
    assert source.load(0).loss_mask is None
    record = source.load(1)
    assert record.loss_mask.shape == (2, 4)
    assert record.inputs["control_image"].size == (21, 10)


def test_the_index_is_kept_while_the_archive_is_unchanged(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, index = shards / "cats-000.tar", tmp_path / "index"
    first = WebDatasetSource(path, index=index)
    keys = [first.key(i) for i in range(len(first))]
    read: list[Path] = []
    headers = shards_module._read_headers
    monkeypatch.setattr(shards_module, "_read_headers", lambda path: read.append(path) or headers(path))
    again = WebDatasetSource(path, index=index)
    assert [again.key(i) for i in range(len(again))] == keys
    assert again.load(1).image.getpixel((0, 0)) == (0, 255, 0)
    assert read == []
    (kept,) = index.iterdir()
    for broken in (b"", b"PK\x03\x04 not all of it", kept.read_bytes()[:-30]):
        kept.write_bytes(broken)
        assert len(WebDatasetSource(path, index=index)) == 2
    assert len(read) == 3
    pack(path, [("new.png", picture()), ("new.txt", b"new")])
    os.utime(path, ns=(1, 1))
    changed = WebDatasetSource(path, index=index)
    assert [changed.key(i) for i in range(len(changed))] == ["cats-000/new"]


def test_an_archive_without_members_keeps_an_index_too(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [])
    for _ in range(2):
        assert members(path, tmp_path / "index").names == []


def test_names_are_only_names(tmp_path: Path) -> None:
    """What would leave the folder if it were extracted, links and devices do no harm."""
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("pipe.png", tarfile.FIFOTYPE), ("d.png", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("../../up.png", "/abs.png", "./here.png", ".hidden.png", "no-suffix"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            tar.addfile(member, io.BytesIO(picture()))
    source = WebDatasetSource(path, caption=None)
    assert [source.key(i) for i in range(len(source))] == ["evil/../../up", "evil//abs", "evil/here"]
    assert source.load(0).image.size == (20, 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.tar"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_kinds_of_tar_and_long_names_are_read(tmp_path: Path, format: int) -> None:
    name = "f" * 90 + "/" + ("ž" if format != tarfile.USTAR_FORMAT else "z") * 80
    path = pack(tmp_path / "long.tar", [(f"{name}.JPG", picture(kind="jpeg")), (f"{name}.txt", b"x")], format)
    source = WebDatasetSource(path)
    assert source.key(0) == f"long/{name}"
    assert source.captions(0) == ["x"]


def test_a_broken_archive_is_named(shards: Path) -> None:
    whole = (shards / "cats-000.tar").read_bytes()
    cases = {
        "cut": (whole[:700], "cannot be read as a tar archive"),
        "text": (b"hello" * 200, "cannot be read as a tar archive"),
        "empty": (b"", "cannot be read as a tar archive"),
        "middle": (whole[:1024] + b"\xff" * 512 + whole[1536:], "is broken at byte 1024"),
        "gz": (gzip.compress(whole), "is compressed with gzip, .*unpack it to a plain .tar"),
    }
    for name, (content, message) in cases.items():
        (shards / f"{name}.tar").write_bytes(content)
        with pytest.raises(ValueError, match=rf"shards: .*{name}\.tar.* {message}"):
            len(WebDatasetSource(shards / f"{name}.tar"))


def test_an_image_that_is_cut_short_later_is_listed_not_loaded(shards: Path) -> None:
    source = WebDatasetSource(shards / "cats-000.tar")
    assert len(source) == 2
    os.truncate(shards / "cats-000.tar", 540)  # 28 bytes after the first header
    with pytest.raises(OSError, match="ends within a member"):
        source.load(0)


def test_broken_images_are_listed(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("1.png", b"no image"), ("2.png", picture()), ("3.png", b"")])
    items, bad = scan([WebDatasetSource(path, caption=None)], "data.main.source")
    assert [items.key(i) for i in range(len(items))] == ["a/2"]
    assert [file.key for file in bad] == ["a/1", "a/3"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([("a.txt", b"x")], {}, "no sample has an image; the members are txt; set image"),
        ([("a.png", picture())], {}, r"^shards: no member 'txt' in the shards\. It has 'png'"),
        ([("a.png", picture()), ("a.text", b"x")], {}, "no member 'txt' in the shards; did you mean 'text'"),
        ([("a.png", picture()), ("a.jpg", picture())], {"caption": None}, "sample a has two images"),
        ([("a.png", picture()), ("a.txt", b"x"), ("a.txt", b"y")], {}, "sample a has two members txt"),
    ],
)
def test_samples_that_do_not_fit_are_named(tmp_path: Path, files: list, options: dict, message: str) -> None:
    path = pack(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=message):
        len(WebDatasetSource(path, **options))


def test_the_image_can_be_chosen(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("a.png", picture("red")), ("a.jpg", picture("blue", kind="jpeg"))])
    assert WebDatasetSource(path, image="png", caption=None).load(0).image.getpixel((0, 0)) == (255, 0, 0)


def test_settings_that_cannot_be_are_named(shards: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"shards: no file at .*cats-003\.tar"):
        WebDatasetSource(shards / "cats-{002..003}.tar")
    for option, message in (
        ("https://x.org/a.tar", "is not a local file, and nothing is downloaded"),
        ("pipe:cat a.tar", "is not a local file"),
        ([shards / "cats-000.tar"] * 2, "is named twice"),
        ([], "the list is empty"),
        (shards / "cats-{000}.tar", "is neither a range"),
    ):
        with pytest.raises(ValueError, match=message):
            WebDatasetSource(option)
    with pytest.raises(ValueError, match='"json" holds several things'):
        WebDatasetSource(shards / "*.tar", caption="json")
    with pytest.raises(ValueError, match="repeat: 0 would show no image"):
        WebDatasetSource(shards / "*.tar", repeat=0)


def test_archives_of_one_name_have_prefixes_of_their_own(tmp_path: Path) -> None:
    for folder in ("x", "y/z"):
        pack(tmp_path / folder / "0.tar", [("a.png", picture())])
    source = WebDatasetSource([tmp_path / "x" / "0.tar", tmp_path / "y" / "z" / "0.tar"], caption=None)
    assert [source.key(i) for i in range(2)] == ["x/0/a", "y/z/0/a"]


def test_braces_are_those_of_a_shell() -> None:
    assert expand_braces("a{008..011}.tar") == ["a008.tar", "a009.tar", "a010.tar", "a011.tar"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a,b}{1,2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("plain") == ["plain"]


def test_a_file_with_braces_in_its_name_is_itself(tmp_path: Path) -> None:
    path = pack(tmp_path / "odd{1}[a].tar", [("a.png", picture())])
    assert shard_paths(path) == [path]


def test_names_are_split_at_the_first_dot_of_the_last_part() -> None:
    assert split_name("dir.v1/0001.Mask.PNG") == ("dir.v1/0001", "mask.png")
    assert split_name("./0001.jpg") == ("0001", "jpg")
    assert split_name("folder/.hidden") == split_name("README") == ("", "")


def test_sizes_that_an_earlier_run_read_are_used_again(shards: Path, tmp_path: Path) -> None:
    for path in shards.glob("*.tar"):
        os.utime(path, ns=(10**18, 10**18))
    items, _ = scan([WebDatasetSource(shards / "*.tar")], "data.main.source", index=tmp_path / "index")
    content = bytearray((shards / "cats-000.tar").read_bytes())
    content[512:520] = b"no image"  # the first image; its stamp stays
    (shards / "cats-000.tar").write_bytes(content)
    os.utime(shards / "cats-000.tar", ns=(10**18, 10**18))
    again, bad = scan([WebDatasetSource(shards / "*.tar")], "data.main.source", index=tmp_path / "index")
    assert again.sizes.tolist() == items.sizes.tolist()
    assert bad == []
