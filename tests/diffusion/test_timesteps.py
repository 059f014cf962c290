import math

import pytest
import torch
from torch import Generator

from hcpdiff.diffusion import timesteps as ts
from hcpdiff.diffusion.process import DDPM, FlowMatching

DRAWS = {
    "uniform": (ts.uniform, {}),
    "uniform-part": (ts.uniform, {"low": 200.0, "high": 600.0}),
    "logit_normal": (ts.logit_normal, {"mean": -0.5, "std": 1.5}),
    "mode": (ts.mode, {"scale": 1.29}),
    "mode-ends": (ts.mode, {"scale": -0.8, "shift": 3.0}),
}
COUNT = 20000
SIZE = (512, 512)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(("draw", "settings"), DRAWS.values(), ids=DRAWS)
def test_a_draw_is_float64_in_range_and_repeats_with_its_seed(draw, settings):
    t = draw(COUNT, seeded(), **settings)
    assert (t.shape, t.dtype, t.device.type) == ((COUNT,), torch.float64, "cpu")
    assert settings.get("low", 0) <= t.min()
    assert t.max() <= settings.get("high", 1000)
    assert torch.equal(t, draw(COUNT, seeded(), **settings))


@pytest.mark.parametrize(("draw", "settings"), DRAWS.values(), ids=DRAWS)
def test_stratified_draws_follow_the_same_density_with_one_draw_per_equal_share(draw, settings):
    n = 64
    independent = torch.cat([draw(COUNT, seeded(i), **settings) for i in range(10)])
    edges = independent.quantile(torch.arange(1, n, dtype=torch.float64) / n)
    shares = torch.bucketize(draw(n, seeded(11), stratified=True, **settings), edges).bincount(minlength=n)
    # each share has one draw; the edges come from 200 000 draws, so a draw close to one may fall over it
    assert (shares == 1).sum() >= n - 12
    assert shares.max() <= 2


def test_stratified_draws_come_in_random_order():
    rank = ts.uniform(256, seeded(), stratified=True).argsort().argsort().double()
    correlation = torch.corrcoef(torch.stack([rank, torch.arange(256, dtype=torch.float64)]))[0, 1]
    assert abs(correlation) < 0.25  # four standard deviations of independent order, 1 / sqrt(256)


def test_logit_normal_has_its_mean_and_std():
    logits = (ts.logit_normal(COUNT, seeded(), mean=0.4, std=0.8) / 1000).logit()
    assert logits.mean().item() == pytest.approx(0.4, abs=0.03)  # five standard errors
    assert logits.std().item() == pytest.approx(0.8, abs=0.03)


def test_mode_sampling_has_the_density_of_the_paper():
    scale = 1.29
    # the density at f(u) is 1 / |f'(u)|; at u = 1/2, f' = -1 - scale (1 - pi / 2)
    t = ts.mode(400000, seeded(), scale=scale, stratified=True) / 1000
    density = ((t - 0.5).abs() < 0.004).double().mean() / 0.008
    assert density.item() == pytest.approx(1 / abs(1 + scale * (1 - math.pi / 2)), rel=0.03)  # its curvature


@pytest.mark.parametrize("draw", [ts.uniform, ts.logit_normal, ts.mode])
def test_a_shift_moves_any_draw_towards_noise(draw):
    plain, moved = draw(1000, seeded()) / 1000, draw(1000, seeded(), shift=3.0) / 1000
    # on the logit scale a shift adds log(shift); logits near the ends lose digits
    torch.testing.assert_close(moved.logit(), plain.logit() + math.log(3), rtol=1e-6, atol=1e-6)


def test_ddpm_trains_at_whole_timesteps_each_equally_often():
    t = DDPM().snap(ts.uniform(5000, seeded(), stratified=True))
    assert t.long().bincount(minlength=1000).tolist() == [5] * 1000
    assert DDPM().snap(torch.tensor([1000.0])).item() == 999
    assert torch.equal(FlowMatching().snap(t + 0.25), t + 0.25)


ZERO_SNR = DDPM("v_prediction", zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ts.uniform(2, seeded(), low=500.0, high=400.0), "low"),
        (lambda: ts.uniform(2, seeded(), shift=0.0), "shift"),
        (lambda: ts.logit_normal(2, seeded(), std=0.0), "std"),
        (lambda: ts.mode(2, seeded(), scale=2.0), "scale"),
        (lambda: ts.flow(0, FlowMatching(), SIZE), "steps"),
        (lambda: ts.resolution_shifted(0, FlowMatching(), SIZE), "steps"),
        (lambda: ts.resolution_shifted(2, FlowMatching(), SIZE, pixels_per_token=0), "pixels_per_token"),
        (lambda: ts.resolution_shifted(2, FlowMatching(), SIZE, last=1.0), "last"),
        (lambda: ts.ddpm(0, DDPM(), SIZE), "steps"),
        (lambda: ts.ddpm(1001, DDPM(), SIZE), "steps"),
        (lambda: ts.ddpm(10, FlowMatching(), SIZE), "spacing"),
        (lambda: ts.ddpm(10, DDPM(), SIZE, spacing="cosine"), "spacing"),
        (lambda: ts.ddpm(10, DDPM(), SIZE, offset=200), "offset"),
        (lambda: ts.karras(10, DDPM(), SIZE, rho=0.0), "rho"),
        (lambda: ts.karras(10, DDPM(), SIZE, sigma_min=20.0), "sigma_min"),
        (lambda: ts.exponential(10, DDPM(), SIZE, sigma_max=20.0), "sigma_max"),
    ],
)
def test_a_wrong_setting_is_named(call, named: str):
    with pytest.raises(ValueError, match=f"^{named}: "):
        call()


SPACINGS = {
    "flow": (ts.flow, {}),
    "flow-shifted": (ts.flow, {"shift": 3.0}),
    "resolution_shifted": (ts.resolution_shifted, {}),
    "resolution_shifted with an end": (ts.resolution_shifted, {"last": 0.02}),
    "karras": (ts.karras, {}),
    "exponential": (ts.exponential, {}),
}


@pytest.mark.parametrize(("spacing", "settings"), SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("process", [DDPM(), FlowMatching()], ids=["ddpm", "flow"])
@pytest.mark.parametrize("num_steps", [1, 2, 13])
def test_a_spacing_falls_from_the_noisiest_timestep_and_never_visits_the_clean_end(
    spacing, settings, process, num_steps
):
    t = spacing(num_steps, process, SIZE, **settings)
    assert (t.shape, t.dtype) == ((num_steps,), torch.float64)
    assert t[0].item() == pytest.approx(process.max_timestep, abs=1e-9)  # karras and exponential go through log and exp
    assert (t.diff() < 0).all()
    assert process.coefficients(t)[1].min() > 0


def test_noise_level_spacings_of_zero_terminal_snr_start_at_the_greatest_finite_level():
    for spacing in (ts.karras, ts.exponential):
        t = spacing(9, ZERO_SNR, SIZE)
        assert t[0].item() == pytest.approx(998, abs=1e-6)  # through log and exp
        assert (t.diff() < 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_spacing_equals_diffusers(shift: float, steps: int):
    from diffusers import FlowMatchEulerDiscreteScheduler

    stock = FlowMatchEulerDiscreteScheduler(shift=shift)
    stock.set_timesteps(steps)
    ours = ts.flow(steps, FlowMatching(), SIZE, shift=shift)
    torch.testing.assert_close(ours, stock.timesteps.double(), atol=2e-4, rtol=0)  # diffusers' float32 is 6e-5 at 1000


@pytest.mark.parametrize("size", [(256, 256), (512, 768), (1024, 1024)])
def test_resolution_shift_equals_the_flux_pipeline_of_diffusers(size: tuple[int, int]):
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20), mu=calculate_shift(size[0] * size[1] // 256))
    ours = ts.resolution_shifted(20, FlowMatching(), size)
    torch.testing.assert_close(ours, stock.timesteps.double(), atol=2e-4, rtol=0)  # float32, as above


def test_stretched_steps_start_where_they_did_and_the_last_where_it_is_told():
    plain, stretched = (ts.resolution_shifted(7, FlowMatching(), SIZE, last=last) for last in (None, 0.02))
    assert stretched[[0, -1]].tolist() == pytest.approx([1000, 20])
    assert ((1000 - stretched) / (1000 - plain))[1:].tolist() == pytest.approx([980 / (1000 - float(plain[-1]))] * 6)
    assert ts.resolution_shifted(1, FlowMatching(), SIZE, last=0.02).tolist() == [1000]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_ddpm_spacings_equal_diffusers(spacing: str, steps: int):
    from diffusers import DDIMScheduler

    stock = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    stock.set_timesteps(steps)
    ours = ts.ddpm(steps, DDPM(), SIZE, spacing=spacing)
    if spacing == "linspace" and steps == 1:
        assert ours.tolist() == [999]  # diffusers starts a single step at the clean end
    else:
        assert ours.tolist() == stock.timesteps.tolist()


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_noise_level_spacings_equal_diffusers(name: str):
    from diffusers import EulerDiscreteScheduler

    stock = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **{f"use_{name}_sigmas": True}
    )
    stock.set_timesteps(17)
    t = getattr(ts, name)(17, DDPM(), SIZE)
    # its levels come from a float32 product of a thousand betas, so that the least is off by up to 1e-4
    torch.testing.assert_close(DDPM().noise_level(t), stock.sigmas[:-1].double(), rtol=2e-4, atol=0)
    torch.testing.assert_close(t, stock.timesteps.double(), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_noise_level_spacings_for_flow_space_sigma_itself(name: str):
    from diffusers import FlowMatchEulerDiscreteScheduler

    stock = FlowMatchEulerDiscreteScheduler(**{f"use_{name}_sigmas": True})
    stock.set_timesteps(12)
    t = getattr(ts, name)(12, FlowMatching(), SIZE)
    torch.testing.assert_close(t, stock.timesteps.double(), atol=2e-4, rtol=0)  # float32 at 1000
