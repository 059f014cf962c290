import math

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import guidance
from hcpdiff.types import Conditioning

LATENTS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 1000.0])
NEGATIVE, POSITIVE = Conditioning(torch.full((2, 5, 6), -1.0)), Conditioning(torch.full((2, 5, 6), 2.0))


class Recorder:
    """A denoiser that returns its conditioning's value and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Conditioning]] = []

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls.append((noisy_latents, timesteps, conditioning))
        return torch.ones_like(noisy_latents) * conditioning.tokens[:, 0, 0].view(-1, 1, 1, 1)


def test_both_branches_run_in_one_batch_with_the_negative_rows_first():
    denoise = Recorder()
    pred = guidance.guided(denoise, LATENTS, T, NEGATIVE, POSITIVE, 3.0)
    assert pred.eq(-1 + 3 * 3).all()
    [(latents, t, conditioning)] = denoise.calls
    assert torch.equal(latents, torch.cat([LATENTS, LATENTS]))
    assert t.tolist() == [0, 1000, 0, 1000]
    assert conditioning.tokens[:, 0, 0].tolist() == [-1, -1, 2, 2]


def test_a_scale_may_differ_per_row_or_follow_the_timestep():
    per_row = guidance.guided(Recorder(), LATENTS, T, NEGATIVE, POSITIVE, torch.tensor([1.0, 2.0]))
    assert per_row[:, 0, 0, 0].tolist() == [2, 5]
    timed = guidance.guided(Recorder(), LATENTS, T, NEGATIVE, POSITIVE, lambda t: guidance.linear(t, low=1.0, high=2.0))
    assert torch.equal(timed, per_row)


def test_a_scale_of_1_needs_no_negative_and_runs_one_branch():
    denoise = Recorder()
    assert not guidance.needs_negative(1.0)
    assert guidance.guided(denoise, LATENTS, T, None, POSITIVE, 1.0).eq(2).all()
    assert len(denoise.calls[0][0]) == 2


@pytest.mark.parametrize("scale", [2.0, torch.ones(2), lambda t: t])
def test_any_other_scale_without_a_negative_is_an_error(scale):
    assert guidance.needs_negative(scale)
    with pytest.raises(ValueError, match=r"^guidance: .* needs a negative"):
        guidance.guided(Recorder(), LATENTS, T, None, POSITIVE, scale)


@pytest.mark.parametrize("patch", [1, 2])
def test_kept_norms_point_where_guidance_does_and_are_as_long_as_the_positive_prediction(patch):
    generator = torch.Generator().manual_seed(1)
    negative, positive = (torch.randn(2, 3, 4, 8, generator=generator) for _ in range(2))
    plain = guidance.extrapolated(negative, positive, 3.0)
    kept = guidance.norm_kept(negative, positive, 3.0, patch=patch)

    def norms(pred: Tensor) -> Tensor:
        cells = pred.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, C, h, w, patch, patch)
        return cells.square().sum((1, 4, 5)).sqrt()

    torch.testing.assert_close(norms(kept), norms(positive))
    factors = (kept / plain).unfold(2, patch, patch).unfold(3, patch, patch)
    torch.testing.assert_close(factors, factors.amax((1, 4, 5), keepdim=True).expand_as(factors))
    assert torch.equal(guidance.norm_kept(positive * 0, positive * 0, 3.0, patch=patch), positive * 0), "no 0 / 0"


def test_what_becomes_of_both_predictions_can_be_told():
    pred = guidance.guided(
        Recorder(), LATENTS, T, NEGATIVE, POSITIVE, 3.0, lambda n, p, scale: n * 100 + p * 10 + scale
    )
    assert pred.eq(-100 + 20 + 3).all()


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        (guidance.linear, lambda rate: rate),
        (guidance.cos, lambda rate: math.cos((rate - 1) * math.pi / 2)),
        (guidance.cos2, lambda rate: 1 - math.cos(rate * math.pi / 2)),
    ],
)
def test_schedules_go_from_low_at_the_clean_end_to_high_at_the_noisy_end(schedule, share):
    t = torch.tensor([0.0, 250.0, 600.0, 999.0])
    expected = [1.5 + (4 - 1.5) * share(float(x) / 999) for x in t]
    assert schedule(t, low=1.5, high=4.0, max_timestep=999.0).tolist() == pytest.approx(expected, rel=1e-5)  # float32


def test_a_schedule_that_is_always_1_is_an_error():
    with pytest.raises(ValueError, match="low and high"):
        guidance.cos(T, low=1.0, high=1.0)
