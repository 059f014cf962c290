from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hcpdiff.data import Dataset, FixedBucket, FolderSource, RatioBucket, TagShuffle
from hcpdiff.data.seeing import look_at, summarize, summary_lines
from hcpdiff.data.seeing.draws import draws, frame
from hcpdiff.data.seeing.looks import look_over, sharpness
from hcpdiff.data.seeing.similar import alike, perceptual_hash
from hcpdiff.data.seeing.summary import spread
from hcpdiff.types import SizeInfo

Make = Callable[..., Dataset]


def scene(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with as much detail of every size, as photographs have."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for side in (2, 4, 8, 16, 32, 64, 128, 256):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        picture += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    low, high = picture.min(), picture.max()
    return Image.fromarray(((picture - low) / (high - low) * 255).astype(np.uint8))


def test_the_summary_counts_what_an_epoch_holds(make: Make, images: Path) -> None:
    (images / "broken.png").write_bytes(b"no image")
    (images / "01.txt").unlink()
    dataset = make(FolderSource(images, repeat=2), RatioBucket(32 * 32, num_buckets=3))
    summary = summarize(dataset)
    assert (summary.images, summary.captioned, summary.without_caption) == (11, 10, 1)
    assert len(summary.epochs) == 1
    epoch = summary.epochs[0]
    assert (epoch.samples, epoch.shown, epoch.again, epoch.left_out, epoch.padded) == (22, 22, 0, 0, 0)
    assert epoch.batches == dataset.batches_per_epoch == sum(bucket.batches for bucket in summary.buckets)
    assert epoch.partial == sum(bucket.partial for bucket in summary.buckets)
    assert sum(bucket.images for bucket in summary.buckets) == 11
    assert sum(bucket.samples for bucket in summary.buckets) == 22
    assert 0 < summary.crop_loss < 0.2
    assert "left out: broken.png: " in str(summary)


def test_six_lines_tell_of_a_dataset_when_a_run_starts(make: Make, images: Path) -> None:
    (images / "01.txt").unlink()
    lines = summary_lines(make(FolderSource(images, repeat=2), FixedBucket(32), batch_size=5))
    assert lines == [
        "data.main: 11 images, 10 with a caption",
        "  they are      52x26 to 64x64, half of them at least 40x41",
        "  cut to        32x32; 25.9% of the area is cut away, 4 images enlarged",
        "  an epoch is   22 samples in 5 batches, 1 of them not full",
        "  each image    exactly 2 times an epoch",
        "  problems      4 smaller than what they are cut to, 1 without a caption",
    ]


@pytest.mark.parametrize(
    ("underfilled", "line"),
    [
        ("keep", "exactly once an epoch"),
        ("pad", "exactly once an epoch; 1 rows without loss fill batches"),
        ("repeat", "once an epoch, and 1 once more to fill batches, others each epoch"),
        ("drop", "once an epoch, but 3 fill no batch and are left out, others each epoch"),
    ],
)
def test_the_summary_says_how_underfilled_batches_change_an_epoch(make: Make, underfilled: str, line: str) -> None:
    assert f"  each image    {line}" in summary_lines(make(underfilled=underfilled))


def test_fractional_repeats_show_several_epochs(make: Make, images: Path) -> None:
    dataset = make(FolderSource(images, repeat=1.5))
    summary = summarize(dataset)
    assert [epoch.batches for epoch in summary.epochs] == [dataset.epoch_length(number) for number in range(3)]
    assert 44 <= sum(epoch.shown for epoch in summary.epochs) <= 55  # each of 11 images four or five times


def test_an_image_of_several_sizes_counts_at_each(make: Make) -> None:
    summary = summarize(make(bucket=[FixedBucket(16), FixedBucket(32)]))
    assert [(bucket.size, bucket.images, bucket.enlarged) for bucket in summary.buckets] == [
        ((16, 16), 11, 0),
        ((32, 32), 11, 4),
    ]
    assert (summary.images, summary.enlarged) == (11, 4)
    assert "at each of its sizes" in str(summary)


def test_crop_loss_is_the_area_that_is_cut_away(make: Make, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    Image.new("RGB", (80, 40)).save(tmp_path / "wide" / "a.png")
    (bucket,) = summarize(make(FolderSource(tmp_path / "wide"))).buckets
    assert bucket.crop_loss == pytest.approx(0.5)
    assert bucket.enlarged == 0


def test_a_part_of_many_numbers_is_evenly_spread() -> None:
    assert spread(3, 5).tolist() == [0, 1, 2]
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(1_000_000, 4).tolist() == [0, 250_000, 500_000, 750_000]


def test_the_frame_is_what_the_crop_keeps() -> None:
    assert frame(SizeInfo((40, 80), (0, 10), (40, 40))) == (0, 0.125, 1, 0.5)


def test_draws_are_those_that_a_run_makes(make: Make) -> None:
    dataset = make(crop="random", flip=0.5, caption_transforms=[TagShuffle()])
    shown = draws(dataset, 3, 3)
    sample = [dataset.samples.sample(epoch, 3) for epoch in range(3)]
    assert [draw.view.size for draw in shown] == [one.size for one in sample]
    assert [draw.prompt for draw in shown] == [one.prompt for one in sample]
    assert len({draw.view.size.crop for draw in shown}) > 1


def test_the_contact_sheet_shows_crops_and_survives_broken_images(make: Make, images: Path) -> None:
    content = (images / "01.png").read_bytes()
    (images / "01.png").write_bytes(content[: len(content) // 2])
    report = look_at(make(flip=1.0), shown=9)
    assert len(report.shown) == 9
    assert [file.key for file in report.broken] == ["01.png"]
    sheet = report.sheet()
    assert sheet.width == 6 * 220
    frames = (np.asarray(sheet) == (255, 80, 0)).all(axis=-1).sum()
    assert frames > 8 * 2 * 200  # a frame of two pixels around each crop


def test_looking_decodes_each_image_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make()
    decoded: list[int] = []
    record = dataset.samples.record
    monkeypatch.setattr(dataset.samples, "record", lambda item, size: decoded.append(item) or record(item, size))
    told: list[tuple[int, int]] = []
    report = look_at(dataset, images=6, progress=lambda done, total: told.append((done, total)))
    assert len(set(decoded)) == len(decoded)
    assert decoded[:6] == spread(11, 6).tolist()  # the rest are small images, which need not be decoded to be found
    assert told == [(done, 6) for done in range(1, 7)]
    assert report.decoded == 6
    with pytest.raises(ValueError, match="--images: 0 is too few"):
        look_at(dataset, images=0)


def test_sharpness_does_not_depend_on_content_or_contrast_but_on_blur() -> None:
    sharp = [scene(256, 320, seed) for seed in range(3)]
    faint = [Image.fromarray(np.asarray(picture) // 2 + 60) for picture in sharp]
    measured = [sharpness(picture) for picture in (*sharp, *faint)]
    assert all(value is not None and value > 0.1 for value in measured)
    blurred = [picture.filter(ImageFilter.GaussianBlur(2)) for picture in (*sharp, *faint)]
    enlarged = [picture.resize((80, 64)).resize((320, 256), Image.Resampling.BICUBIC) for picture in sharp]
    assert all(value is not None and value < 0.03 for value in map(sharpness, (*blurred, *enlarged)))
    assert sharpness(Image.new("RGB", (64, 64), (10, 200, 30))) is None
    assert sharpness(sharp[0].resize((31, 200))) is None


def hashed(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    greys = [picture.convert("L").resize((32, 32), Image.Resampling.BOX) for picture in pictures]
    small = [np.array(picture.resize((8, 8), Image.Resampling.BOX)) for picture in pictures]
    return np.array([perceptual_hash(np.asarray(grey)) for grey in greys], dtype=np.uint64), np.stack(small)


def test_copies_of_another_size_and_brightness_are_found(tmp_path: Path) -> None:
    pictures = [scene(200, 240, seed) for seed in range(20)]
    pictures.append(pictures[4].resize((60, 50)))
    pictures.append(Image.fromarray(np.minimum(np.asarray(pictures[4]), 247) + np.uint8(8)))
    pictures[11].save(tmp_path / "a.jpg", quality=30)
    pictures.append(Image.open(tmp_path / "a.jpg"))
    assert [group.tolist() for group in alike(*hashed(pictures))] == [[4, 20, 21], [11, 22]]


def test_pictures_of_one_shape_and_different_colours_are_not_alike() -> None:
    grey = np.asarray(scene(64, 64).convert("L")) / 255
    colours = [(255, 60, 60), (60, 160, 60), (90, 90, 255)]
    pictures = [Image.fromarray((grey[..., None] * colour).astype(np.uint8)) for colour in colours]
    assert alike(*hashed(pictures)) == []


def test_groups_are_those_of_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 400, dtype=np.uint64)
    for number in range(100, 200):  # copies with up to 9 other bits
        flips = rng.choice(64, rng.integers(0, 10), replace=False).astype(np.uint64)
        hashes[number] = hashes[number - 100] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    small = np.zeros((400, 8, 8, 3), dtype=np.uint8)
    near = {(i, i + 100) for i in range(100) if bin(int(hashes[i] ^ hashes[i + 100])).count("1") <= 6}
    assert {tuple(group.tolist()) for group in alike(hashes, small)} == near
    assert 40 < len(near) < 90


def test_very_many_equal_hashes_are_grouped_in_bounded_time() -> None:
    small = np.random.default_rng(0).integers(0, 256, (20_000, 8, 8, 3), dtype=np.uint8)
    small[500] = small[15_000]
    # All pairs would be 200 million; each is compared with the 32 that are next in brightness.
    (group,) = alike(np.full(20_000, 7, dtype=np.uint64), small)
    assert group.tolist() == [500, 15_000]


def test_broken_images_are_listed_and_the_rest_are_seen(make: Make, images: Path) -> None:
    content = (images / "02.png").read_bytes()
    (images / "02.png").write_bytes(content[: len(content) // 2])
    looks, bad = look_over(make(), range(11))
    assert len(looks) == 10
    assert [file.key for file in bad] == ["02.png"]
    assert all(look.thumbnail is not None and look.thumbnail.startswith(b"\xff\xd8") for look in looks)
