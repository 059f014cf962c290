import math

import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.process import DDPM, FlowMatching, Process
from hcpdiff.diffusion.timesteps import ddpm, flow
from tests.diffusion.analytic import PROCESSES, exact_end, gaussian_data, generators, two_peaks

DETERMINISTIC = {
    "euler": (samplers.euler, {}, 1),
    "ddim": (samplers.ddim, {}, 1),
    "heun": (samplers.heun, {}, 2),
    "lms": (samplers.lms, {}, 3),
    "dpmpp_2m": (samplers.dpmpp_2m, {}, 2),
    "dpmpp_2m_sde-0": (samplers.dpmpp_2m_sde, {"eta": 0.0}, 2),
    "dpmpp_3m_sde-0": (samplers.dpmpp_3m_sde, {"eta": 0.0}, 2),
    "unipc": (samplers.unipc, {}, 2),
    "unipc-3": (samplers.unipc, {"order": 3}, 2),
}
STOCHASTIC = {
    "euler_ancestral": (samplers.euler_ancestral, {}),
    "euler_ancestral-half": (samplers.euler_ancestral, {"eta": 0.5}),
    "ddim-1": (samplers.ddim, {"eta": 1.0}),
    "lcm": (samplers.lcm, {}),
    "dpmpp_2m_sde": (samplers.dpmpp_2m_sde, {}),
    "dpmpp_3m_sde": (samplers.dpmpp_3m_sde, {}),
}
ALL = {**{name: case[:2] for name, case in DETERMINISTIC.items()}, **STOCHASTIC}


def spaced(process: Process, steps: int) -> Tensor:
    if process.prediction == "flow":
        return flow(steps, process, (64, 64))
    return ddpm(steps, process, (64, 64), spacing="trailing")


def start(rows: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 4, 3, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("sampler", "settings", "order"), DETERMINISTIC.values(), ids=DETERMINISTIC)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_deterministic_sampler_converges_to_the_exact_solution(sampler, settings, order: int, process: Process):
    errors = []
    for steps in (20, 80):
        t = torch.linspace(800, 20, steps, dtype=torch.float64)
        end = sampler(gaussian_data(process), start(), t, process, **settings)
        errors.append((end - exact_end(process, start(), t[0])).abs().max().item())
    last = _error_of_last_step(process)
    # four times the steps; the last one, from timestep 20 to the clean end, is first order and stays as it is
    assert errors[1] < max(errors[0] / 2**order, last)
    assert errors[1] < (0.03 if order == 1 else 2e-3) + last


def _error_of_last_step(process: Process) -> float:
    t = torch.tensor([20.0], dtype=torch.float64)
    single = samplers.euler(gaussian_data(process), start(), t, process)
    return 1.5 * (single - exact_end(process, start(), t[0])).abs().max().item()


@pytest.mark.parametrize(("sampler", "settings"), STOCHASTIC.values(), ids=STOCHASTIC)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_stochastic_sampler_keeps_the_distribution_of_the_data(sampler, settings, process: Process):
    t = spaced(process, 250)
    noise = torch.randn(40, 1, 20, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end = sampler(gaussian_data(process), noise, t, process, generators=generators(40), **settings)
    # 40 000 values of std 0.5: standard errors 0.0025 and 0.0018. lcm jumps to the mean: it needs a distilled model
    assert end.mean().item() == pytest.approx(0.7, abs=0.02)
    if sampler is not samplers.lcm:
        assert end.std().item() == pytest.approx(0.5, rel=0.04)  # 250 first-order steps


@pytest.mark.parametrize(("sampler", "settings"), ALL.values(), ids=ALL)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_an_image_is_the_same_in_any_batch(sampler, settings, process: Process):
    t = spaced(process, 6)
    together = sampler(two_peaks(process), start(3), t, process, generators=generators(3), **settings)
    alone = sampler(two_peaks(process), start(3)[1:2], t, process, generators=generators(1, seed=1), **settings)
    torch.testing.assert_close(together[1:2], alone, atol=1e-12, rtol=0)  # fp64: vectorised exp may differ in a bit


@pytest.mark.parametrize(("sampler", "settings"), ALL.values(), ids=ALL)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_any_number_of_steps_gives_finite_latents_of_the_same_dtype(sampler, settings, process: Process, steps: int):
    latents = start(dtype=torch.float32)
    before = latents.clone()
    end = sampler(two_peaks(process), latents, spaced(process, steps), process, generators=generators(2), **settings)
    assert end.dtype == torch.float32
    assert end.isfinite().all()
    assert torch.equal(latents, before)


@pytest.mark.parametrize(("sampler", "settings"), ALL.values(), ids=ALL)
def test_one_step_from_pure_noise_gives_the_clean_prediction(sampler, settings):
    process = FlowMatching()
    t = torch.tensor([1000.0], dtype=torch.float64)
    end = sampler(two_peaks(process), start(), t, process, generators=generators(2), **settings)
    torch.testing.assert_close(end, two_peaks(process)(start(), t[0])[0], atol=1e-12, rtol=0)  # fp64


@pytest.mark.parametrize(("sampler", "settings"), ALL.values(), ids=ALL)
def test_the_callback_gets_every_step_with_its_clean_latents(sampler, settings):
    process, seen = DDPM(), []
    t = spaced(process, 4)
    sampler(
        two_peaks(process),
        start(),
        t,
        process,
        generators=generators(2),
        callback=lambda step, clean: seen.append((step, clean.shape)),
        **settings,
    )
    assert seen == [(i, start().shape) for i in range(4)]


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim-1", "lcm", "dpmpp_2m_sde", "dpmpp_3m_sde"])
@pytest.mark.parametrize("given", [None, 1])
def test_a_stochastic_sampler_without_a_generator_for_every_row_is_an_error(name: str, given: int | None):
    process = DDPM()
    sampler, settings = STOCHASTIC[name]
    rows = None if given is None else generators(given)
    with pytest.raises(ValueError, match=r"one generator for each of 2 rows"):
        sampler(two_peaks(process), start(), spaced(process, 3), process, generators=rows, **settings)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (samplers.ddim, {"eta": -1.0}),
        (samplers.euler_ancestral, {"eta": -0.1}),
        (samplers.dpmpp_2m_sde, {"eta": -1.0}),
        (samplers.dpmpp_3m_sde, {"eta": -1.0}),
        (samplers.lms, {"order": 5}),
        (samplers.unipc, {"order": 0}),
    ],
)
@pytest.mark.parametrize("process", [DDPM(), FlowMatching()], ids=["ddpm", "flow"])
def test_a_wrong_setting_is_named(sampler, settings: dict, process: Process):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: "):
        sampler(two_peaks(process), start(), spaced(process, 3), process, generators=generators(2), **settings)


def test_no_step_reads_a_value_back_from_the_latents():
    class Unreadable(Tensor):
        """A tensor whose values Python must not ask for, as on a device that is still computing."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            assert func not in (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.cpu)
            return super().__torch_function__(func, types, args, kwargs or {})

    process = DDPM("v_prediction")

    def predict(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return latents * 0.5, latents * 0.1

    for sampler, settings in ALL.values():
        latents = start(dtype=torch.float32).as_subclass(Unreadable)
        end = sampler(predict, latents, spaced(process, 5), process, generators=generators(2), **settings)
        assert isinstance(end, Unreadable)


def test_ancestral_noise_of_ddpm_is_the_share_that_ddim_calls_eta():
    process, t = DDPM(), spaced(DDPM(), 5)
    ours = [
        sampler(two_peaks(process), start(), t, process, generators=generators(2), eta=0.6)
        for sampler in (samplers.euler_ancestral, samplers.ddim)
    ]
    assert torch.equal(*ours)
    assert not math.isclose(ours[0].std(), samplers.euler(two_peaks(process), start(), t, process).std())
