from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcpdiff.data.images.cutting import cut, place
from hcpdiff.data.scan import scan
from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.pairs import PairSource


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Path]:
    """Three pairs, of which `sub/c` lacks its `before` and `d` its `after`."""
    for name in ("after/a.png", "after/b.jpg", "after/sub/c.png", "before/a.webp", "before/b.png", "before/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), "red" if name.startswith("after") else "blue").save(path)
        path.with_suffix(".txt").write_text(f"make it like {name}")
    return {"after": tmp_path / "after", "before": tmp_path / "before"}


def test_images_of_one_name_are_a_pair(pairs: dict[str, Path]) -> None:
    source = PairSource(pairs)
    assert isinstance(source, Source)
    assert [source.key(i) for i in range(len(source))] == ["a", "b", "d", "sub/c"]
    assert source.size(0) == (10, 20)
    assert source.captions(0) == ["make it like after/a.png"]
    record = source.load(0)
    assert record.image.getpixel((0, 0)) == (255, 0, 0)
    assert list(record.inputs) == ["before"]
    assert max(np.abs(np.subtract(record.inputs["before"].getpixel((0, 0)), (0, 0, 255)))) <= 5  # WebP is lossy


def test_any_role_may_be_the_image(pairs: dict[str, Path]) -> None:
    record = PairSource(pairs, image="before").load(1)
    assert record.image.getpixel((0, 0)) == (0, 0, 255)
    assert list(record.inputs) == ["after"]


def test_a_pair_that_lacks_its_partner_is_listed_with_what_is_missing(pairs: dict[str, Path]) -> None:
    items, bad = scan([PairSource(pairs)], "data.main.source")
    assert [items.key(i) for i in range(len(items))] == ["a", "b"]
    assert {file.key for file in bad} == {"d", "sub/c"}
    reasons = {file.key: file.reason for file in bad}
    assert f"no after d.* in {pairs['after']}" in reasons["d"]
    assert f"no before sub/c.* in {pairs['before']}" in reasons["sub/c"]


def test_two_images_of_one_name_are_listed(pairs: dict[str, Path]) -> None:
    Image.new("RGB", (20, 10)).save(pairs["before"] / "a.png")
    with pytest.raises(ValueError, match=r"before has a\.png and a\.webp of one name; keep one"):
        PairSource(pairs).size(0)


def test_both_are_cut_alike(tmp_path: Path) -> None:
    """The partner may have another resolution; every pixel must show the same place."""
    y, x = np.mgrid[:40, :60].astype(np.uint8)
    picture = Image.fromarray(np.stack([4 * x, 6 * y, 0 * x], axis=-1))
    for role, image in (("after", picture), ("before", picture.resize((120, 80), Image.Resampling.BICUBIC))):
        (tmp_path / role).mkdir()
        image.save(tmp_path / role / "a.png")
    record = PairSource({"after": tmp_path / "after", "before": tmp_path / "before"}).load(0)
    example = cut(record, place((40, 60), (32, 32), (0.5, 0.9)), flip=True)
    difference = np.abs(example.image.astype(int) - example.inputs["before"])
    assert difference.max() <= 6  # a step of the gradient is 4 to 6; a shift by a pixel would be that much everywhere
    assert difference.mean() < 1


def test_masks_belong_to_a_pair_and_change_its_fingerprint(pairs: dict[str, Path], tmp_path: Path) -> None:
    before = PairSource(pairs).fingerprint(0)
    (tmp_path / "masks").mkdir()
    Image.new("L", (4, 2), 255).save(tmp_path / "masks" / "a.png")
    source = PairSource(pairs, loss_masks=tmp_path / "masks")
    assert source.load(0).loss_mask.tolist() == [[1.0] * 4] * 2
    assert source.load(1).loss_mask is None
    assert source.fingerprint(0) != before
    assert source.fingerprint(1) == PairSource(pairs).fingerprint(1)


def test_wrong_settings_are_named(pairs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folders: a pair needs two"):
        PairSource({"after": pairs["after"]})
    with pytest.raises(ValueError, match=r"^image: no role 'befor' in folders; did you mean 'before'"):
        PairSource(pairs, image="befor")
    with pytest.raises(FileNotFoundError, match=r"folders\.before: no folder at .*nope"):
        PairSource({**pairs, "before": tmp_path / "nope"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folders\.before: no images in .*empty"):
        len(PairSource({**pairs, "before": tmp_path / "empty"}))
