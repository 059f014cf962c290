from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.data import Dataset, FixedBucket, FolderSource
from hcpdiff.types import Conditioning

SIZES = [(40, 40), (48, 40), (60, 30), (30, 60), (64, 64), (32, 50), (44, 44), (33, 47), (52, 26), (28, 56), (40, 41)]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eleven pictures with captions, in two folders."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, (height, width) in enumerate(SIZES):
        path = folder / ("sub" if number % 3 == 0 else "") / f"{number:02}.png"
        picture(height, width, number).save(path)
        path.with_suffix(".txt").write_text(f"picture {number}, red, blue\n", encoding="utf-8")
    return folder


@pytest.fixture
def make(images: Path) -> Callable[..., Dataset]:
    """A prepared dataset of the pictures: 32 x 32 and 4 in a batch unless told otherwise; its log is `.lines`."""

    def build(
        source: object = None,
        bucket: object = None,
        *,
        seed: int = 0,
        name: str = "main",
        max_side: int | None = None,
        **options: object,
    ) -> Dataset:
        dataset = Dataset(source or FolderSource(images), bucket or FixedBucket(32), **{"batch_size": 4, **options})
        dataset.lines = []
        dataset.prepare(seed=seed, name=name, multiple_of=8, log=dataset.lines.append, max_side=max_side)
        return dataset

    return build


@pytest.fixture
def encode_image() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Stands in for a VAE with 8 x downscaling and 4 channels; std is 0.5. Counts its images in `.seen`."""

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        encode.seen += len(images)
        mean = torch.nn.functional.avg_pool2d(images, 8)
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        return mean, torch.full_like(mean, 0.5)

    encode.seen = 0
    return encode


@pytest.fixture
def encode_prompt() -> Callable[[list[str]], Conditioning]:
    """Stands in for text encoders: tokens spell the prompt. Counts its prompts in `.seen`."""

    def encode(prompts: list[str]) -> Conditioning:
        encode.seen += len(prompts)
        codes = torch.tensor([list(prompt.encode()[:20].ljust(20)) for prompt in prompts])
        return Conditioning(
            tokens=codes[..., None].float(), mask=(codes != 32).float(), extras={"length": torch.ones(len(prompts), 1)}
        )

    encode.seen = 0
    return encode
