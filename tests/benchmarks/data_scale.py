"""What large datasets cost before the first step: time and memory of a million images, and of a restart.

python tests/benchmarks/data_scale.py [headers] [restart] [table] [index] [--files 100000] [--images 1000000]
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from hcpdiff.data import Dataset, FolderSource, RatioBucket, Record
from hcpdiff.data.images.headers import image_size
from hcpdiff.data.images.reading import read_size
from hcpdiff.data.index import FileIndex
from hcpdiff.data.scan import scan
from hcpdiff.data.sources.base import Stamps

SHAPES = [(64, 64), (48, 80), (80, 48), (40, 96), (57, 63), (96, 40), (64, 72), (51, 77)]  # (height, width)
PARTS = ("headers", "restart", "table", "index")


class Numbers:
    """A source of many images that tells their sizes at once, or, if `files`, as files that are only stamps."""

    def __init__(self, count: int, *, files: bool) -> None:
        self.count = count
        rng = np.random.default_rng(0)
        self.shapes = rng.integers(512, 2048, (count, 2)).astype(np.int32)
        self.files = files

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"sub{index % 100:02}/picture-{index:09}.jpg"

    def size(self, index: int) -> tuple[int, int]:
        height, width = self.shapes[index].tolist()
        return height, width

    def sizes(self) -> np.ndarray | None:
        return None if self.files else self.shapes

    def stamps(self) -> Stamps | None:
        if not self.files:
            return None
        names = [f"/data/images/{self.key(index)}" for index in range(self.count)]
        return Stamps(names, np.arange(self.count), np.full(self.count, 100_000))

    def captions(self, index: int) -> list[str]:
        return [f"caption {index % 100}"]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(Image.new("RGB", (8, 8)))


def pictures() -> list[tuple[str, bytes]]:
    """Small files of several formats and shapes: (suffix, content)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera"
    kinds = [("jpg", {"exif": exif}), ("jpg", {}), ("png", {}), ("webp", {})]
    files = []
    for (height, width), (suffix, options) in itertools.product(SHAPES, kinds):
        noise = np.random.default_rng(height).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        content = io.BytesIO()
        picture = Image.fromarray(noise).resize((width, height))
        picture.save(content, format={"jpg": "JPEG"}.get(suffix, suffix), **options)
        files.append((suffix, content.getvalue()))
    return files


@contextmanager
def folder_of(count: int) -> Iterator[Path]:
    """A folder of so many files in a hundred subfolders, an hour old; deleted in the end."""
    kinds = pictures()
    then = time.time() - 3600
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        for number in range(count):
            suffix, content = kinds[number % len(kinds)]
            place = folder / f"{number % 100:02}" / f"{number:07}.{suffix}"
            if number < 100:
                place.parent.mkdir(parents=True)
            place.write_bytes(content)
            os.utime(place, (then, then))
        yield folder


def headers(count: int) -> None:
    """Sizes from the headers of real files: with our parsers, and with Pillow alone."""
    with folder_of(count) as folder:
        paths = [folder / name for name in FolderSource(folder).files]
        assert all(image_size(path) == read_size(path) for path in paths[:1000])
        for title, read in (("our parsers", image_size), ("Pillow", read_size)):
            start = time.process_time()
            for path in paths:
                read(path)
            print(f"headers, {title:<12}: {count / (time.process_time() - start):>9.0f} files/s on one core")


def restart(count: int) -> None:
    """A first look at a folder, a second one with the index, and the fingerprints of both."""
    with folder_of(count) as folder:
        index = folder.parent / "index"
        for title in ("first run", "restart"):
            start = time.perf_counter()
            files = FileIndex(index)
            source = FolderSource(folder)
            items, bad = scan([source], "data.main.source", index=files)
            looked = time.perf_counter() - start
            for number in range(count):
                source.fingerprint(number)
            files.save()
            hashed = time.perf_counter() - start - looked
            assert (len(items), len(bad)) == (count, 0)
            print(f"{count} files, {title:<9}: {looked:6.2f} s for the sizes, {hashed:6.2f} s for all fingerprints")


def million(count: int, *, files: bool) -> None:
    """Scan, buckets and the order of an epoch, of images whose sizes are known."""
    import hcpdiff.data.samples  # noqa: F401  (the dataset's own imports are no part of what is measured)

    with tempfile.TemporaryDirectory() as folder:
        source = Numbers(count, files=files)
        if files:
            scan([source], "", index=folder)
        before = rss("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        start = time.perf_counter()
        items, _ = scan([source], "data.main.source", index=folder if files else None)
        scanned = time.perf_counter() - start
        print(f"  scan {scanned:5.2f} s, peak {rss('VmHWM') - before:4.0f} MB of {len(items)} images")
        if not files:
            dataset = Dataset(source, RatioBucket(512 * 512), batch_size=8)
            dataset.prepare(seed=0, name="main", multiple_of=8, log=lambda line: None)
            dataset.epoch(0)
            print(
                f"  scan, buckets, samples, epoch order: {time.perf_counter() - start - scanned:5.2f} s, "
                f"peak {rss('VmHWM') - before:4.0f} MB"
            )


def rss(field: str) -> float:
    """Memory of this process in MB: VmRSS is now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000


def main() -> None:
    """Each part in a process of its own, so that it starts with a small memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=1_000_000)
    options = parser.parse_args()
    counts = ["--files", str(options.files), "--images", str(options.images)]
    if len(options.parts) != 1:
        for part in options.parts or PARTS:
            subprocess.run([sys.executable, __file__, part, *counts], check=True)
        return
    if options.parts == ["headers"]:
        headers(options.files // 5)
    elif options.parts == ["restart"]:
        restart(options.files)
    else:
        print(f"{options.images} images, sizes from the {options.parts[0]}:")
        million(options.images, files=options.parts == ["index"])


if __name__ == "__main__":
    main()
