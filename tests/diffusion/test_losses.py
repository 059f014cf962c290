import math

import pytest
import torch

from hcpdiff.diffusion import losses
from hcpdiff.diffusion.process import DDPM, FlowMatching

T = torch.tensor([0.0, 10.0, 500.0, 999.0], dtype=torch.float64)
PRED = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.zeros_like(PRED)


def test_mse_and_l1_are_unreduced():
    assert torch.equal(losses.mse(PRED, TARGET, T, DDPM()), PRED**2)
    assert torch.equal(losses.l1(PRED, TARGET, T, DDPM()), PRED.abs())


def deltas(schedule: str, process) -> list[float]:
    """The delta of each row, read from the slope 2 delta that the loss has far out."""
    far = torch.full((4, 1), 1e6, dtype=torch.float64)
    slope = losses.huber(far + 1, far * 0, T, process, delta=0.2, schedule=schedule)
    slope = slope - losses.huber(far, far * 0, T, process, delta=0.2, schedule=schedule)
    return (slope[:, 0] / 2).tolist()


def test_huber_has_the_published_schedules():
    level = DDPM().noise_level(T)
    # the difference of two numbers near 1e6 keeps ten digits
    assert deltas("constant", DDPM()) == pytest.approx([0.2] * 4, rel=1e-6)
    assert deltas("exponential", DDPM()) == pytest.approx(
        [math.exp(math.log(0.2) * t / 1000) for t in T.tolist()], rel=1e-6
    )
    assert deltas("snr", DDPM()) == pytest.approx([0.8 / (1 + s) ** 2 + 0.2 for s in level.tolist()], rel=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber_is_finite_over_all_of_flow(schedule: str):
    ends = torch.tensor([0.0, 1.0, 999.0, 1000.0])
    assert losses.huber(PRED, TARGET, ends, FlowMatching(), schedule=schedule).isfinite().all()


def test_huber_is_squared_error_near_zero():
    small = PRED * 1e-4
    # relative error (e / 2 delta)^2
    torch.testing.assert_close(losses.huber(small, TARGET, T, DDPM(), delta=1.0), small**2, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize(("name", "value"), [("delta", 0.0), ("delta", 2.0), ("schedule", "cosine")])
def test_a_wrong_setting_is_named(name: str, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        losses.huber(PRED, TARGET, T, DDPM(), **{name: value})


def test_a_mask_weights_the_loss_and_normalising_undoes_the_size_of_its_area():
    error, mask = torch.ones(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[0, :, :2], mask[1, :, :1, :1] = 1, 1
    assert losses.masked(error, mask).mean((1, 2, 3)).tolist() == [0.5, 1 / 16]
    assert losses.masked(error, mask, normalize=True).mean((1, 2, 3)).tolist() == [1, 1]
    assert error.eq(1).all()


def test_a_mask_in_pixels_is_averaged_to_the_latents():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :4] = 1
    assert losses.masked(torch.ones(1, 2, 2, 2), mask)[0, 0].tolist() == [[0.5, 0], [0.5, 0]]


def test_an_empty_mask_gives_no_loss_and_no_nan():
    assert losses.masked(torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), normalize=True).eq(0).all()
