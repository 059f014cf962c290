import copy
import pickle

import pytest
import torch

from hcpdiff.diffusion.process import DDPM, FlowMatching, Process
from tests.diffusion.analytic import PROCESSES

T = torch.tensor([1.0, 250.5, 700.0, 999.0], dtype=torch.float64)


def pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 2, 5, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_split_undoes_target(process: Process):
    latents, noise = pair()
    noisy = process.add_noise(latents, noise, T)
    clean, found = process.split(process.target(latents, noise, T), noisy, T)
    # fp64 with a division by alpha >= 0.07
    torch.testing.assert_close(clean, latents, atol=1e-12, rtol=0)
    sigma = process.coefficients(T)[1]
    torch.testing.assert_close(found[sigma > 0], noise[sigma > 0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_add_noise_mixes_by_alpha_and_sigma_of_each_row(process: Process):
    latents, noise = pair()
    noisy = process.add_noise(latents, noise, T)
    alpha, sigma = process.coefficients(T)
    for i in range(4):
        torch.testing.assert_close(noisy[i], alpha[i] * latents[i] + sigma[i] * noise[i])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_half_precision_keeps_its_dtype_and_is_rounded_once(process: Process):
    latents, noise = pair(torch.bfloat16)
    noisy = process.add_noise(latents, noise, T)
    assert noisy.dtype == process.target(latents, noise, T).dtype == torch.bfloat16
    exact = process.add_noise(latents.double(), noise.double(), T)
    # half a unit in the last of bfloat16's 8 bits, plus float32 rounding
    torch.testing.assert_close(noisy.double(), exact, rtol=2**-8 * 1.01, atol=1e-6)
    assert {part.dtype for part in process.split(noise, noisy, T)} == {torch.bfloat16}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_noise_grows_with_the_timestep_between_whole_timesteps_too(process: Process):
    t = torch.linspace(process.min_timestep, process.max_timestep, 4321, dtype=torch.float64)
    alpha, sigma = process.coefficients(t)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_timesteps_at_undoes_noise_level(process: Process):
    t = torch.tensor([1.0, 3.25, 400.0, 997.5], dtype=torch.float64)
    # levels go through log and exp
    torch.testing.assert_close(process.timesteps_at(process.noise_level(t)), t, atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos"])
@pytest.mark.parametrize("zero", [False, True])
def test_ddpm_schedules_equal_diffusers(schedule: str, zero: bool):
    from diffusers import DDIMScheduler

    name = {"squaredcos": "squaredcos_cap_v2"}.get(schedule, schedule)
    stock = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=name, rescale_betas_zero_snr=zero, clip_sample=False
    )
    process = DDPM("v_prediction", schedule=schedule, zero_terminal_snr=zero)
    alpha, _ = process.coefficients(torch.arange(1000))
    # diffusers multiplies a thousand float32 numbers: 1000 * 2^-24
    torch.testing.assert_close(alpha**2, stock.alphas_cumprod.double(), atol=6e-5, rtol=0)


def test_between_whole_timesteps_the_log_of_the_noise_level_is_linear():
    process = DDPM()
    low, middle, high = process.noise_level(torch.tensor([500.0, 500.25, 501.0], dtype=torch.float64)).log()
    torch.testing.assert_close(middle, 0.75 * low + 0.25 * high, atol=1e-12, rtol=0)


def test_timesteps_above_the_last_count_as_the_last_for_ddpm():
    alpha, _ = DDPM().coefficients(torch.tensor([999.0, 1000.0]))
    assert alpha[0] == alpha[1]


def test_flow_runs_from_clean_at_0_to_noise_at_1000():
    alpha, sigma = FlowMatching().coefficients(torch.tensor([0.0, 250.0, 1000.0]))
    assert alpha.tolist() == [1, 0.75, 0]
    assert sigma.tolist() == [0, 0.25, 1]


def test_zero_terminal_snr_ends_in_pure_noise_that_v_and_sample_can_split():
    last = torch.tensor([999.0])
    latents, noise = (x[:1] for x in pair())
    for prediction in ("v_prediction", "sample"):
        process = DDPM(prediction, zero_terminal_snr=True)
        assert process.snr(last).item() == 0
        noisy = process.add_noise(latents, noise, last)
        assert torch.equal(noisy, noise)
        clean, found = process.split(process.target(latents, noise, last), noisy, last)
        assert torch.equal(clean, latents)
        assert torch.equal(found, noise)


def test_snr_is_the_square_of_alpha_over_sigma():
    alpha, sigma = DDPM().coefficients(T)
    torch.testing.assert_close(DDPM().snr(T), alpha**2 / sigma**2)


def test_trajectory_ends_clean():
    alphas, sigmas = FlowMatching().trajectory(torch.tensor([1000.0, 500.0]))
    assert alphas.tolist() == [0, 0.5, 1]
    assert sigmas.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prediction": "flow"}, "prediction"),
        ({"prediction": "noise"}, "prediction"),
        ({"schedule": "cosine"}, "schedule"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"prediction": "epsilon", "zero_terminal_snr": True}, "zero_terminal_snr"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict, named: str):
    with pytest.raises(ValueError, match=f"^{named}: "):
        DDPM(**settings)


def test_a_process_copies_and_pickles():
    process = DDPM("v_prediction")
    for copied in (copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        assert torch.equal(copied.coefficients(T)[0], process.coefficients(T)[0])
