"""What the trainer costs beside the work: its steps against bare forward, backward and optimizer step.

Both train the same LoRA on the same cached batches, by turns in one run. The trainer draws batches, noise and
timesteps, checks for losses that are no numbers, clips, moves the average, schedules, logs every step to metrics.jsonl
and draws its bar; the bare loop has one batch, one noise and one set of timesteps ready, and clips.

OMP_NUM_THREADS=1 python tests/benchmarks/trainer.py [--steps 40] [--batch 16] [--model hcpdiff/tiny-sd3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from hcpdiff.data import Dataset, FixedBucket, Scenes
from hcpdiff.models import SD3
from hcpdiff.plugins import LoRA, PluginSpec, attach
from hcpdiff.plugins.plugin import PluginInputs
from hcpdiff.train.schedules import cosine
from hcpdiff.train.settings import EmaSettings, TrainSettings
from hcpdiff.train.trainer import Trainer
from hcpdiff.types import Batch


def trainer(model: str, batch: int, size: int, folder: Path) -> Trainer:
    family = SD3.from_pretrained(model, t5=False)
    spec = PluginSpec(LoRA, layers=[r"re:transformer_blocks\..*attn\.(?:to|add)_.*"], options={"rank": 8})
    settings = TrainSettings(
        steps=10**6,
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        schedule=partial(cosine, steps=10**6),
        ema=EmaSettings(),
    )
    scenes = Scenes(count=4 * batch)
    data = Dataset(scenes, FixedBucket(size), batch_size=batch, cache_latents="memory", cache_text="memory")
    plugins = attach(family, {"style": spec})
    return Trainer(family, {"main": data}, settings, plugins=plugins, folder=folder)


def full_step(run: Trainer) -> Callable[[], None]:
    """A step as `Trainer.fit` makes it."""
    batches = run.load_data().batches()
    for callback in run.callbacks:
        callback.on_start(run)

    def step() -> None:
        started = time.perf_counter()
        losses, images = run.train_step(batches)
        for callback in run.callbacks:
            callback.on_step(run, losses, images, time.perf_counter() - started)

    return step


def bare_step(run: Trainer) -> Callable[[], Tensor]:
    """The least that trains: everything that can be is computed beforehand."""
    family, process = run.family, run.family.process
    batch: Batch = next(run.load_data().batches())["main"]
    parameters = list(run.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    noise, timesteps = torch.randn_like(batch.images), torch.linspace(50, 950, len(batch))
    noisy, target = (f(batch.images, noise, timesteps) for f in (process.add_noise, process.target))
    run.plugins.feed(PluginInputs({}, {}, timesteps))
    assert batch.positive is not None
    conditioning = batch.positive

    def step() -> Tensor:
        loss = (family.denoise(noisy, timesteps, conditioning) - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=48, help="of the pictures, in pixels")
    parser.add_argument("--model", default="hcpdiff/tiny-sd3")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [trainer(given.model, given.batch, given.size, Path(folder) / name) for name in ("full", "bare")]
        steps = [full_step(runs[0]), bare_step(runs[1])]
        clock = time.process_time if runs[0].accelerator.device.type == "cpu" else time.perf_counter
        times: list[list[float]] = [[], []]
        for number in range(given.steps + 5):
            for step, seconds in zip(steps, times, strict=True):
                start = clock()
                step()
                if number >= 5:  # warm
                    seconds.append(clock() - start)
        for callback in runs[0].callbacks:
            callback.on_exit(runs[0])
    (full, bare), least = (median(seconds) for seconds in times), [min(seconds) for seconds in times]
    ratio = median(a / b for a, b in zip(*times, strict=True))
    print(f"trainer {1e3 * full:.2f} ms, bare {1e3 * bare:.2f} ms a step (median of {given.steps} by turns)")
    print(f"trainer / bare: {ratio:.3f} by pairs, {least[0] / least[1]:.3f} of the least (target 1.03)")


if __name__ == "__main__":
    main()
