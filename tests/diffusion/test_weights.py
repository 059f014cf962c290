import math

import pytest
import torch

from hcpdiff.diffusion import weights
from hcpdiff.diffusion.process import DDPM, FlowMatching, Process
from tests.diffusion.analytic import PROCESSES

T = torch.tensor([1.0, 100.0, 400.0, 900.0], dtype=torch.float64)
GENERAL = {
    "min_snr": (weights.min_snr, {"gamma": 2.0}),
    "soft_min_snr": (weights.soft_min_snr, {"gamma": 2.0}),
    "debiased": (weights.debiased, {}),
    "p2": (weights.p2, {"gamma": 0.5, "k": 2.0}),
}


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)  # fp64


def test_min_snr_has_the_published_form_for_each_ddpm_prediction():
    snr, gamma = DDPM().snr(T), torch.tensor(3.0, dtype=torch.float64)
    cut = torch.minimum(snr, gamma)
    close(weights.min_snr(T, DDPM("epsilon"), gamma=3.0), cut / snr)
    close(weights.min_snr(T, DDPM("v_prediction"), gamma=3.0), cut / (snr + 1))
    close(weights.min_snr(T, DDPM("sample"), gamma=3.0), cut)


@pytest.mark.parametrize(("weight", "settings"), GENERAL.values(), ids=GENERAL)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_weighted_loss_says_the_same_about_clean_latents_whatever_is_predicted(weight, settings, process: Process):
    g = torch.Generator().manual_seed(0)
    latents, noise, wrong = (torch.randn(4, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(3))
    target, noisy = process.target(latents, noise, T), process.add_noise(latents, noise, T)
    loss = weight(T, process, **settings) * ((wrong - target) ** 2).mean((1, 2, 3))
    clean, _ = process.split(wrong, noisy, T)
    clean_loss = ((clean - latents) ** 2).mean((1, 2, 3))
    snr = process.snr(T)
    on_clean = {
        "min_snr": lambda: snr.clamp(max=2.0),
        "soft_min_snr": lambda: 1 / (1 / snr + 1 / 2.0),
        "debiased": lambda: snr**0.5,
        "p2": lambda: snr / (2.0 + snr) ** 0.5,
    }[weight.__name__]()
    close(loss, on_clean * clean_loss)


def test_the_published_epsilon_weights():
    snr = DDPM().snr(T)
    close(weights.debiased(T, DDPM()), snr**-0.5)
    close(weights.p2(T, DDPM(), gamma=1.0, k=1.0), 1 / (1 + snr))
    close(weights.soft_min_snr(T, DDPM(), gamma=5.0), 5 / (snr + 5))


def test_the_published_flow_weights():
    sigma = T / 1000
    close(weights.sigma_sqrt(T, FlowMatching()), sigma**-2)
    close(weights.cosmap(T, FlowMatching()), 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)))
    close(weights.min_snr(T, FlowMatching(), gamma=5.0), torch.minimum(5 * sigma**2, (1 - sigma) ** 2))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_weights_are_finite_from_end_to_end(process: Process):
    ends = torch.tensor([0.0, process.max_timestep])
    for weight, settings in GENERAL.values():
        assert weight(ends, process, **settings).isfinite().all(), weight.__name__
    if process.prediction == "flow":
        assert weights.sigma_sqrt(ends, process).isfinite().all()


@pytest.mark.parametrize(
    ("weight", "settings", "named"),
    [
        (weights.min_snr, {"gamma": 0.0}, "gamma"),
        (weights.soft_min_snr, {"gamma": -1.0}, "gamma"),
        (weights.p2, {"k": 0.0}, "k"),
        (weights.sigma_sqrt, {}, "sigma_sqrt"),
        (weights.cosmap, {}, "cosmap"),
    ],
)
def test_a_wrong_setting_is_named(weight, settings: dict, named: str):
    with pytest.raises(ValueError, match=f"^{named}: "):
        weight(T, DDPM(), **settings)
