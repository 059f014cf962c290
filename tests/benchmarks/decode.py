"""What it costs to turn JPEG files into training images: hcpdiff's way, and the usual one, by turns in one run.

The usual one opens, converts, scales the whole image by Lanczos, crops, and makes a float tensor in [-1, 1].

python tests/benchmarks/decode.py [--target 512] [--images 4] [--rounds 15]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: one core

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.data.images.cutting import cut, image_tensor, place
from hcpdiff.data.images.reading import read_rgb
from hcpdiff.data.sources.base import Record
from hcpdiff.types import SizeInfo

SIZES = [(1024, 1024), (832, 1216), (1152, 896), (1536, 2048), (3000, 4000)]  # (height, width)


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Textured as photographs are: amplitudes fall as 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency) for _ in range(4)]
    base, *colours = (layer / layer.std() for layer in noise)
    pixels = np.stack([0.85 * base + 0.35 * colour for colour in colours], axis=-1)
    return Image.fromarray((pixels * 45 + 120).clip(0, 255).astype(np.uint8))


def usual(file: bytes, size: SizeInfo) -> Tensor:
    """Pillow and float arithmetic."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    image = image.resize(size.scaled[::-1], Image.Resampling.LANCZOS)
    (top, left), (height, width) = size.crop, size.target
    image = image.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return (pixels - 0.5) / 0.5


def ours(file: bytes, size: SizeInfo) -> Tensor:
    """What a dataset does."""
    return image_tensor(cut(Record(read_rgb(io.BytesIO(file), at_least=size.scaled)), size).image)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print milliseconds per image, their ratio and the difference of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, default=512)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"to {options.target} px, medians of {options.rounds} rounds, one core")
    for original in SIZES:
        files = []
        for seed in range(options.images):
            file = io.BytesIO()
            photograph(*original, seed).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
        size = place(original, (options.target, options.target))
        times: dict[str, list[float]] = {"usual": [], "ours": []}
        for _ in range(options.rounds):
            for way in (usual, ours):
                times[way.__name__].append(seconds(lambda way=way, f=files, s=size: [way(file, s) for file in f]))
        cost = {name: 1000 * statistics.median(values) / len(files) for name, values in times.items()}
        apart = 127.5 * (usual(files[0], size) - ours(files[0], size)).abs().mean()
        print(
            f"{original[0]:>5} x {original[1]:<5} usual {cost['usual']:6.1f} ms   hcpdiff {cost['ours']:6.1f} ms   "
            f"{cost['usual'] / cost['ours']:.2f} x   mean difference {apart:.2f} of 255"
        )


if __name__ == "__main__":
    main()
