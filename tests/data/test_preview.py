from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcpdiff.data import Dataset, FolderSource, RatioBucket
from hcpdiff.data.preview import contact_sheet, summarize

Make = Callable[..., Dataset]


def test_the_summary_counts_what_an_epoch_holds(make: Make, images: Path) -> None:
    (images / "broken.png").write_bytes(b"no image")
    (images / "01.txt").unlink()
    dataset = make(FolderSource(images, repeat=2), RatioBucket(32 * 32, num_buckets=3))
    summary = summarize(dataset, prompts=3)
    assert (summary.images, summary.captioned, summary.samples) == (11, 10, 22)
    assert summary.batches == dataset.batches_per_epoch == sum(bucket.batches for bucket in summary.buckets)
    assert sum(bucket.images for bucket in summary.buckets) == 11
    assert sum(bucket.samples for bucket in summary.buckets) == 22
    assert 0 < summary.crop_loss < 0.2
    assert [key for key, _ in summary.prompts] == (dataset.batch(0).keys + dataset.batch(1).keys)[:3]
    text = str(summary)
    assert "main: 11 images (10 with a caption), 22 samples" in text
    assert "left out: broken.png: UnidentifiedImageError" in text


def test_crop_loss_is_the_area_that_is_cut_away(make: Make, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    Image.new("RGB", (80, 40)).save(tmp_path / "wide" / "a.png")
    (bucket,) = summarize(make(FolderSource(tmp_path / "wide"))).buckets
    assert bucket.crop_loss == pytest.approx(0.5)
    assert bucket.enlarged == 0


def test_the_contact_sheet_shows_crops_and_survives_broken_images(make: Make, images: Path) -> None:
    content = (images / "01.png").read_bytes()
    (images / "01.png").write_bytes(content[: len(content) // 2])
    sheet = contact_sheet(make(flip=1.0), count=9, columns=4, cell=100)
    assert sheet.width == 400
    pixels = np.asarray(sheet)
    frames = (pixels == (255, 80, 0)).all(axis=-1).sum()
    assert frames > 8 * 2 * 100  # a frame of two pixels around each crop
