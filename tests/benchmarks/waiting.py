"""How long a step of 100 ms waits for its batch, and whether the memory of loading processes grows.

OMP_NUM_THREADS=1 python tests/benchmarks/waiting.py [--steps 100] [--samples 100000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from hcpdiff.data import Dataset, FixedBucket, FolderSource, Streams
from tests.benchmarks.loader import Encoders, cached, files

STEP = 0.1  # seconds of arithmetic


def waiting(dataset: Dataset, steps: int, workers: int = 0) -> float:
    """The share of the time of steps that was spent waiting for a batch."""
    batches = Streams({"main": dataset}, workers=workers).batches()
    matrix, waited, began = torch.randn(256, 256), 0.0, 0.0
    for step in range(steps + 3):
        if step == 3:
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        next(batches)
        given = time.perf_counter()
        waited += given - asked
        while time.perf_counter() - given < STEP:
            matrix @ matrix
    batches.close()
    return waited / (time.perf_counter() - began)


def own_memory() -> dict[str, float]:
    """MiB that each loading process of this one has for itself, by its number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if lines["PPid"].strip() == str(Path("/proc/self").resolve().name):
                found[path.parent.name] = int(lines["RssAnon"].split()[0]) / 1024
        except (OSError, KeyError):  # it has ended meanwhile
            continue
    return found


def growth(samples: int) -> tuple[float, float]:
    """MiB of the largest loading process after a tenth of the samples, and after all."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2000):
            Image.new("RGB", (40, 40), (number % 256, 0, 0)).save(Path(folder) / f"{number}.png")
            (Path(folder) / f"{number}.txt").write_text(f"caption {number}, a, b, c")
        dataset = Dataset(FolderSource(folder), FixedBucket(32), batch_size=50, prompt_dropout=0.1, crop="random")
        dataset.prepare(seed=0, name="main", multiple_of=8, log=lambda line: None)
        batches = Streams({"main": dataset}, workers=2).batches()
        sizes = []
        for number in range(1, samples // 50 + 1):
            next(batches)
            if number in (samples // 500, samples // 50):
                sizes.append(max(own_memory().values()))
        batches.close()
    return sizes[0], sizes[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        encoders = Encoders(64, (154, 4096), torch.bfloat16)
        dataset = cached(folder, 512, encoders, text=True, batch=4)
        print(f"cached latents and conditioning, batches of 4: {waiting(dataset, options.steps):.2%} of a step")
    with tempfile.TemporaryDirectory() as folder:
        dataset = files(folder, 64, 1024, batch=4)
        for workers in (1, 2):
            share = waiting(dataset, options.steps, workers)
            print(f"4 JPEGs of 1024 cut to 512, {workers} processes: {share:.2%} of a step")
    before, after = growth(options.samples)
    print(f"a loading process has {before:.1f} MiB after {options.samples // 10} samples, {after:.1f} after all")


if __name__ == "__main__":
    main()
