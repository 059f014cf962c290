"""A small classifier that reads drawn scenes: which shape, color and background, and is the background striped?

It measures what the tiny model draws. Training takes about a minute and a half on one CPU thread; the weights are kept
in the temporary folder under the hash of this file, so that it is trained once.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hcpdiff.data.sources.scenes import COLORS, SHAPES, SIZES, Scene, Scenes, render
from hcpdiff.randomness import generator

QUESTIONS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "background": tuple(COLORS),
    "pattern": ("plain", "striped"),
}
TRAINING = 7500  # scenes
STEPS, BATCH = 1000, 64


class Probe(nn.Module):
    """(B, 3, H, W) in [-1, 1] to the logits of each question; any size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 32, 64, 96)
        self.convs = nn.ModuleList(
            nn.Conv2d(into, out, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (into, out) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[1:])
        self.out = nn.Linear(2 * widths[-1], sum(len(answers) for answers in QUESTIONS.values()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        logits = self.out(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))
        return logits.split([len(answers) for answers in QUESTIONS.values()], dim=1)

    @torch.no_grad()
    def read(self, images: Iterable[np.ndarray]) -> list[dict[str, str]]:
        """(H, W, 3) uint8 pictures to the most likely answers, e.g. {"shape": "star", "color": "red" ...}."""
        return [
            {
                question: answers[int(logits.argmax())]
                for (question, answers), logits in zip(QUESTIONS.items(), self(as_tensor(image)[None]), strict=True)
            }
            for image in images
        ]


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def answers(scene: Scene) -> dict[str, str]:
    """What the probe should read."""
    return {question: getattr(scene, question) for question in QUESTIONS}


def share_right(probe: Probe, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of the pictures that show what their scene says, per question and for all of them together."""
    read = probe.read(images)
    right = {
        question: [seen[question] == getattr(scene, question) for seen, scene in zip(read, scenes, strict=True)]
        for question in QUESTIONS
    }
    right["all"] = [all(row) for row in zip(*right.values(), strict=True)]
    return {question: sum(row) / len(row) for question, row in right.items()}


def load(vae: nn.Module | None = None, *, folder: Path | None = None) -> Probe:
    """The trained probe, from `folder` (default: a temporary one) if it was trained before.

    Args:
        vae: a model with `encode_image` and `decode`; half of the training pictures go through it, since what the
            tiny model draws has its blur.
    """
    folder = folder or Path(tempfile.gettempdir()) / "hcpdiff-benchmarks"
    file = folder / f"probe-{hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6).hexdigest()}.safetensors"
    probe = Probe()
    if file.exists():
        probe.load_state_dict(load_file(file))
    else:
        train(probe, vae)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(probe.state_dict(), file)
    return probe.eval()


def train(probe: Probe, vae: nn.Module | None) -> None:
    """Train on scenes of all sizes, plain and striped."""
    for name, parameter in probe.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator(0, "probe", name))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    groups = [_data(size, TRAINING // len(set(SIZES)), 0, vae) for size in sorted(set(SIZES))]
    for step in range(STEPS):
        draw = generator(0, "probe batch", step)
        images, labels = groups[step % len(groups)]
        rows = torch.randint(len(images), (BATCH,), generator=draw)
        batch = images[rows] + 0.1 * torch.rand((), generator=draw) * torch.randn(images[rows].shape, generator=draw)
        batch = batch.flip(3) if step % 2 else batch
        loss = sum(F.cross_entropy(logits, label) for logits, label in zip(probe(batch), labels[rows].T, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _data(size: tuple[int, int], count: int, seed: int, vae: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Pictures of one size (N, 3, H, W), every other one through the VAE, and their answers (N, questions)."""
    source = Scenes(count, seed=seed, sizes=[size], patterns=QUESTIONS["pattern"])
    scenes = [source.scene(i) for i in range(count)]
    images = torch.stack([as_tensor(render(scene)) for scene in scenes])
    if vae is not None:
        with torch.no_grad():
            for part in images[::2].split(100):
                part.copy_(vae.decode(vae.encode_image(part)).clamp(-1, 1))
    labels = [[known.index(getattr(scene, question)) for question, known in QUESTIONS.items()] for scene in scenes]
    return images, torch.tensor(labels)
