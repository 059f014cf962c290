"""How fast batches come: from cached latents, in memory and on disk, and from image files.

python tests/benchmarks/loader.py [--samples 4096] [--seconds 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.data import Dataset, FixedBucket, FolderSource, Record, Streams
from hcpdiff.types import Conditioning


class NumberedImages:
    """A source of plain images that differ by their colour."""

    def __init__(self, count: int, side: int) -> None:
        self.count = count
        self.side = side

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{index}.png"

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def captions(self, index: int) -> list[str]:
        return [f"caption {index % 100}"]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(Image.new("RGB", (self.side, self.side), (index % 256, index // 256 % 256, 0)))

    def fingerprint(self, index: int) -> str:
        return str(index)


def encode_image(images: Tensor) -> tuple[Tensor, Tensor]:
    """Stands in for a VAE: latents (B, 16, 16, 16)."""
    mean = torch.nn.functional.adaptive_avg_pool2d(images, (16, 16)).repeat(1, 6, 1, 1)[:, :16]
    return mean, torch.full_like(mean, 0.1)


def encode_prompt(prompts: list[str]) -> Conditioning:
    """Stands in for text encoders."""
    return Conditioning(tokens=torch.zeros(len(prompts), 77, 64), pooled=torch.zeros(len(prompts), 64))


def samples_per_second(dataset: Dataset, seconds: float, *, workers: int = 0) -> float:
    """Of a prepared dataset, after a first batch."""
    batches = Streams({"main": dataset}, workers=workers).batches()
    next(batches)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        count += len(next(batches)["main"])
    return count / (time.process_time() - start)


def cached(mode: str, samples: int, folder: str, *, text: bool) -> Dataset:
    """A dataset of cached 16 x 16 x 16 latents."""
    dataset = Dataset(
        NumberedImages(samples, 32),
        FixedBucket(32),
        batch_size=64,
        cache_latents=mode,
        cache_text=mode if text else False,
        cache_dir=folder,
    )
    dataset.prepare(seed=0, name="main", multiple_of=8, log=lambda line: None)
    dataset.store_latents(encode_image, "benchmark", batch_size=256)
    if text:
        dataset.store_text(encode_prompt, "benchmark")
    return dataset


def files(folder: str, count: int, side: int) -> Dataset:
    """A dataset of JPEG files of natural smoothness, cut to half their side."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
        pixels.resize((side, side), Image.Resampling.BICUBIC).save(Path(folder) / f"{number}.jpg", quality=90)
    dataset = Dataset(FolderSource(folder), FixedBucket(side // 2), batch_size=8)
    dataset.prepare(seed=0, name="main", multiple_of=8, log=lambda line: None)
    return dataset


def main() -> None:
    """Print samples per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for mode in ("memory", "disk"):
        for text in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                rate = samples_per_second(cached(mode, options.samples, folder, text=text), options.seconds)
            what = "latents and 77 x 64 text" if text else "latents 16 x 16 x 16"
            print(f"cached in {mode:<6}, {what:<24}: {rate:>8.0f} samples/s on one core")
    with tempfile.TemporaryDirectory() as folder:
        dataset = files(folder, 32, 1024)
        rate = samples_per_second(dataset, options.seconds)
    print(f"JPEG files, 1024 px to 512 px{'':<13}: {rate:>8.0f} samples/s on one core")


if __name__ == "__main__":
    main()
