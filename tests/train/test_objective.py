from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion.guidance import linear
from hcpdiff.diffusion.losses import mse
from hcpdiff.diffusion.noise import gaussian
from hcpdiff.diffusion.process import Process
from hcpdiff.diffusion.timesteps import uniform
from hcpdiff.plugins import attach
from hcpdiff.train.objective import Objective
from hcpdiff.train.trainer import Trainer
from hcpdiff.types import Batch
from tests.train import runs


def first_batch(trainer: Trainer) -> Batch:
    return next(trainer.load_data().batches())["main"]


def losses(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Of the first batch, per sample; and what its unreduced loss was, (B, C, h, w)."""
    kept: list[Tensor] = []
    original = trainer.objective.loss

    def keeping(model_pred: Tensor, target: Tensor, timesteps: Tensor, process: Process) -> Tensor:
        kept.append(original(model_pred, target, timesteps, process))
        return kept[-1]

    trainer.objective.loss = keeping
    return trainer.objective(first_batch(trainer), 0, "main").detach(), kept[0].detach()


def test_what_a_config_leaves_out_is_uniform_gaussian_and_squared(tmp_path: Path) -> None:
    objective = runs.make(tmp_path).objective
    assert (objective.timesteps, objective.noise, objective.loss) == (uniform, gaussian, mse)


@pytest.mark.parametrize("cache", [False, "memory"])
def test_a_mask_multiplies_the_loss_and_the_mean_is_over_all_pixels(tmp_path: Path, cache: object) -> None:
    data = {"main": runs.pictures(masks=True, cache_latents=cache)}
    trainer = runs.make(tmp_path, data=data)
    masked, error = losses(trainer)
    mask = first_batch(trainer).loss_mask
    assert mask is not None
    assert mask.shape[-1] == (12 if cache else 24)  # of latents, and of pixels
    small = mask if cache else mask.unflatten(-1, (12, 2)).unflatten(-3, (12, 2)).mean((-1, -3))
    torch.testing.assert_close(masked, (error * small).mean((1, 2, 3)))
    assert 0.3 < float(small.mean()) < 0.7  # not renormalised: half the mask, about half the loss


def test_a_weighting_multiplies_each_sample(tmp_path: Path) -> None:
    def weighting(timesteps: Tensor, process: Process) -> Tensor:
        return timesteps / 100

    plain, weighted = (
        runs.make(tmp_path, timesteps=lambda n, g: torch.arange(1.0, n + 1) * 300, **extra)
        for extra in ({}, {"weighting": weighting})
    )
    torch.testing.assert_close(losses(weighted)[0], losses(plain)[0] * torch.tensor([3.0, 6.0]))


@pytest.mark.parametrize("guidance", [3.0, partial(linear, low=1.5, high=4.0)])
def test_guided_training_is_the_same_with_cached_text_and_trains_both_branches(
    tmp_path: Path, guidance: object
) -> None:
    updates = []
    for cache in (False, "memory"):
        data = {"main": runs.pictures(cache_latents="memory", cache_text=cache)}
        plugins = {"good": runs.lora(branch="positive"), "bad": runs.lora(branch="negative")}
        trainer = runs.make(tmp_path / str(cache), data=data, plugins=plugins, guidance=guidance)
        start = runs.tensors(dict(trainer.parameters))
        trainer.fit()
        now = runs.tensors(dict(trainer.parameters))
        updates.append({name: now[name] - start[name] for name in now if "lora_B" in name})
        assert all(float(update.abs().max()) > 0 for update in updates[-1].values())
        assert len(updates[-1]) == 18  # 3 blocks, 3 layers, 2 plugins
    lines = [[line["loss"] for line in runs.metrics(tmp_path / name)] for name in ("False", "memory")]
    assert lines[0] == pytest.approx(lines[1], rel=1e-4)  # a prompt is encoded in batches of other sizes


def test_guided_training_without_an_effect_of_plugins_is_the_guided_formula(tmp_path: Path) -> None:
    trainer = runs.make(tmp_path, guidance=3.0)
    single = runs.make(tmp_path)
    batch = first_batch(trainer)
    with torch.no_grad():
        positive = trainer.family.encode_prompt([p.positive for p in batch.prompts])
        negative = trainer.family.encode_prompt([p.negative for p in batch.prompts])
        noisy, t = torch.randn(2, 4, 12, 12), torch.tensor([300.0, 700.0])
        a, b = (single.family.denoise(noisy, t, c) for c in (negative, positive))
        guided = trainer.objective._guided(batch, noisy, t)
    torch.testing.assert_close(guided, a + 3.0 * (b - a), rtol=1e-4, atol=1e-4)  # one batch of 4 against two of 2


def test_frozen_encoders_cost_no_gradients_and_trained_ones_get_them() -> None:
    family = runs.family()
    group = attach(family, {"text": runs.lora(on="text_encoders.clip_l", lr=None)})
    trained = Objective(family, group, seed=0, timesteps=uniform, noise=gaussian, loss=mse)
    frozen = Objective(family, attach(runs.family(), {}), seed=0, timesteps=uniform, noise=gaussian, loss=mse)
    assert trained._encode(["a"]).tokens.requires_grad
    assert not frozen._encode(["a"]).tokens.requires_grad
    assert trained.text_trained
    assert not trained.vae_trained
