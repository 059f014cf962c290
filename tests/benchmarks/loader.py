"""How fast batches come from cached latents and conditioning and from image files, and what a large cache costs.

python tests/benchmarks/loader.py [--samples 4096] [--seconds 3] [--rows 100000] [PART ...]

PART is one of: small, large, text, files, table, memory; default: all. Times are processor time on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.data import Dataset, FixedBucket, FolderSource, Record, Streams
from hcpdiff.data.cache import Table, content_key
from hcpdiff.data.dataset import CacheMode
from hcpdiff.types import Conditioning


class NumberedImages:
    """A source of plain images that differ by their colour."""

    def __init__(self, count: int, side: int, captions: int = 100) -> None:
        self.count = count
        self.side = side
        self.of_captions = captions

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{index}.png"

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def captions(self, index: int) -> list[str]:
        return [f"caption {index % self.of_captions}"]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(Image.new("RGB", (self.side, self.side), (index % 256, index // 256 % 256, 0)))

    def fingerprint(self, index: int) -> str:
        return str(index)


class Encoders:
    """Stand in for a VAE, whose latents are (16, side, side), and for text encoders, whose tokens are of a shape."""

    def __init__(self, side: int = 16, tokens: tuple[int, int] = (77, 64), dtype: torch.dtype = torch.float32) -> None:
        self.side, self.tokens, self.dtype = side, tokens, dtype

    def image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.nn.functional.interpolate(images[:, :1], (self.side, self.side)).repeat(1, 16, 1, 1)
        return mean.to(self.dtype), torch.full_like(mean, 0.1, dtype=self.dtype)

    def prompt(self, prompts: Sequence[str]) -> Conditioning:
        n = len(prompts)
        return Conditioning(
            tokens=torch.zeros(n, *self.tokens, dtype=self.dtype), pooled=torch.zeros(n, 64, dtype=self.dtype)
        )


def samples_per_second(dataset: Dataset, seconds: float, *, workers: int = 0) -> float:
    """Of a prepared dataset, after an epoch at most."""
    batches = Streams({"main": dataset}, workers=workers).batches()
    for _ in range(min(64, dataset.batches_per_epoch)):
        next(batches)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        count += len(next(batches)["main"])
    return count / (time.process_time() - start)


def cached(
    folder: str,
    samples: int,
    encoders: Encoders,
    *,
    mode: CacheMode = "disk",
    text: bool = False,
    captions: int = 100,
    batch: int = 64,
) -> Dataset:
    """A dataset of cached latents, and conditioning."""
    dataset = Dataset(
        NumberedImages(samples, 32, captions),
        FixedBucket(32),
        batch_size=batch,
        cache_latents=mode,
        cache_text=mode if text else False,
        cache_dir=folder,
    )
    dataset.prepare(seed=0, name="main", multiple_of=8, log=lambda line: None)
    dataset.store_latents(encoders.image, "benchmark", batch_size=256)
    if text:
        dataset.store_text(encoders.prompt, "benchmark", batch_size=64)
    return dataset


def files(folder: str, count: int, side: int, batch: int = 8) -> Dataset:
    """A dataset of JPEG files of natural smoothness, cut to half their side."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
        pixels.resize((side, side), Image.Resampling.BICUBIC).save(Path(folder) / f"{number}.jpg", quality=90)
    dataset = Dataset(FolderSource(folder), FixedBucket(side // 2), batch_size=batch)
    dataset.prepare(seed=0, name="main", multiple_of=8, log=lambda line: None)
    return dataset


def say(what: str, value: float, unit: str) -> None:
    print(f"{what:<58}: {value:>10,.{0 if value >= 100 else 2}f} {unit}", flush=True)


def small(options: argparse.Namespace) -> None:
    for mode in ("memory", "disk"):
        for text in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                dataset = cached(folder, options.samples, Encoders(), mode=mode, text=text)
                rate = samples_per_second(dataset, options.seconds)
            say(f"latents 16 x 16 x 16{' and text 77 x 64' if text else ''}, {mode}", rate, "samples/s")


def large(options: argparse.Namespace) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        with tempfile.TemporaryDirectory() as folder:
            dataset = cached(folder, options.samples // 2, Encoders(64, dtype=dtype))
            rate = samples_per_second(dataset, options.seconds)
        say(f"latents 64 x 64 x 16, {str(dtype).removeprefix('torch.')}, disk", rate, "samples/s")


def text(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encoders = Encoders(4, (154, 4096), torch.bfloat16)
        dataset = cached(folder, options.samples, encoders, text=True, captions=options.samples // 4)
        rate = samples_per_second(dataset, options.seconds)
    say("conditioning 154 x 4096, bfloat16, disk", rate, "samples/s")


def from_files(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rate = samples_per_second(files(folder, 32, 1024), options.seconds)
    say("JPEG files, 1024 px to 512 px", rate, "samples/s")


def large_table(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Table(folder)
        for number in range(options.rows):
            table.add(content_key(number), {"mean": torch.zeros(64), "std": torch.zeros(64)})
        table.flush()
        before, start = private_bytes(), time.perf_counter()
        again = Table(folder)
        seconds = time.perf_counter() - start
        keys = [content_key(number) for number in range(options.rows)]
        start = time.perf_counter()
        assert (again.find(keys) >= 0).all()
        found = time.perf_counter() - start
        del keys
        say(f"opening a table of {options.rows:,} rows", seconds * 1000, "ms")
        say("  finding all of its keys", found * 1000, "ms")
        say("  memory of its own per row", (private_bytes() - before) / options.rows, "bytes")
        (Path(folder) / "index.npz").unlink()
        start = time.perf_counter()
        Table(folder)
        say("  opening it without its index", (time.perf_counter() - start) * 1000, "ms")


def memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = cached(folder, 2048, Encoders(64, dtype=torch.bfloat16), text=True)
        batches = Streams({"main": dataset}).batches()
        seen, marks = 0, []
        for at in (10_000, 100_000):
            while seen < at:
                seen += len(next(batches)["main"])
            marks.append(private_bytes())
    say("memory of its own after 10,000 samples", marks[0] / 2**20, "MiB")
    say("  after 100,000 samples, more by", (marks[1] - marks[0]) / 2**20, "MiB")


def private_bytes() -> int:
    """Memory of this process alone, mapped files aside."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


PARTS = {"small": small, "large": large, "text": text, "files": from_files, "table": large_table, "memory": memory}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        sys.exit(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
