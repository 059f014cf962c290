"""Every sampler against the scheduler of the same name in diffusers, step by step, on a known denoiser.

diffusers works in float32. Here its schedulers are told that float32 is float64, and get our float64 noise levels, so
that the arithmetic itself is compared: 1e-9 is rounding of fp64 on values up to 15 that some schedulers carry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.process import DDPM, FlowMatching, Process
from hcpdiff.diffusion.samplers.loop import Predict
from hcpdiff.diffusion.timesteps import ddpm, flow
from tests.diffusion.analytic import generators, two_peaks

SIZE = (64, 64)
FLOAT32 = torch.float32
FP64 = {"atol": 1e-9, "rtol": 0.0}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STOCK_NAMES = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample", "flow": "flow_prediction"}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def start() -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def visited(process: Process, steps: int = 9) -> Tensor:
    if process.prediction == "flow":
        # not from 1000, where most of diffusers' schedulers put another number for an infinite log(alpha / sigma)
        return flow(steps, process, SIZE, shift=3.0) * 0.995
    return ddpm(steps, process, SIZE, spacing="trailing")


class Recorded:
    """A denoiser that remembers the noisy latents it was given."""

    def __init__(self, predict: Predict) -> None:
        self.predict, self.inputs = predict, []

    def __call__(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs.append(latents.clone())
        return self.predict(latents, t)


def ours(sampler: Callable[..., Tensor], process: Process, t: Tensor, **settings: Any) -> list[Tensor]:
    """Noisy latents at every prediction, and the end."""
    model = Recorded(two_peaks(process))
    end = sampler(model, start(), t, process, generators=generators(2), **settings)
    return [*model.inputs, end]


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Tensor]]]:
    """Runs a scheduler of diffusers in float64, with the noise that our samplers draw."""

    def run(
        name: str,
        process: Process,
        t: Tensor,
        *,
        variance_exploding: bool = False,
        repeats: bool = False,
        prepare: Callable[[Any], None] = lambda scheduler: None,
        **config: Any,
    ) -> list[Tensor]:
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(np, "float32", np.float64)
        torch.set_default_dtype(torch.float64)
        scheduler = getattr(diffusers, name)(**config)
        module = importlib.import_module(type(scheduler).__module__)
        if hasattr(module, "randn_tensor"):
            rows = generators(2)
            monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: _noise(rows))
        scheduler.set_timesteps(len(t))
        _set_path(scheduler, process, t, repeats)
        prepare(scheduler)
        trace = _sample(scheduler, process, t, variance_exploding, repeats)
        restore()
        return trace

    def restore() -> None:
        monkeypatch.undo()
        torch.set_default_dtype(FLOAT32)

    yield run
    restore()


def _noise(rows: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(4, 3, 5, generator=g, dtype=FLOAT32) for g in rows]).double()


def _set_path(scheduler: Any, process: Process, t: Tensor, repeats: bool) -> None:
    """Our timesteps and noise levels, exactly."""
    levels = torch.cat([process.noise_level(t), torch.zeros(1, dtype=torch.float64)])
    if repeats:  # Heun lists all but the first timestep twice
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        scheduler.timesteps = torch.cat([t[:1], t[1:].repeat_interleave(2)])
    else:
        scheduler.timesteps = t if hasattr(scheduler, "sigmas") else t.long()
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = levels
        scheduler.set_begin_index(0)


def _sample(scheduler: Any, process: Process, t: Tensor, exploding: bool, repeats: bool) -> list[Tensor]:
    model, visits = two_peaks(process), scheduler.timesteps
    alpha = process.coefficients(t)[0]
    sample, trace = start() / alpha[0] if exploding else start(), []
    for stock_t in visits:
        latents = scheduler.scale_model_input(sample, stock_t) if exploding else sample
        trace.append(latents)
        own_t = stock_t.double().view(1)
        clean, noise = model(latents, own_t[0])
        pred = process.target(clean, noise, own_t.expand(2))
        sample = scheduler.step(pred, stock_t, sample).prev_sample
    return [*trace, sample]


def assert_same(mine: list[Tensor], theirs: list[Tensor], **tolerance: float) -> None:
    assert len(mine) == len(theirs)
    for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m, step=step: f"outputs differ at step {step}: {m}")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_euler_equals_euler_discrete(stock, prediction: str):
    process = DDPM(prediction)
    t = visited(process)
    theirs = stock("EulerDiscreteScheduler", process, t, variance_exploding=True, prediction_type=prediction, **BETAS)
    assert_same(ours(samplers.euler, process, t), theirs, **FP64)


@pytest.mark.parametrize("prediction", PREDICTIONS[:2])  # diffusers' has no "sample"
def test_euler_ancestral_equals_euler_ancestral_discrete(stock, prediction: str):
    process = DDPM(prediction)
    t = visited(process)
    theirs = stock(
        "EulerAncestralDiscreteScheduler", process, t, variance_exploding=True, prediction_type=prediction, **BETAS
    )
    # ours draws the last noise only where it counts, diffusers adds zero times noise
    assert_same(ours(samplers.euler_ancestral, process, t), theirs, **FP64)


@pytest.mark.parametrize("prediction", PREDICTIONS[:2])  # diffusers' has no "sample"
def test_heun_equals_heun_discrete(stock, prediction: str):
    process = DDPM(prediction)
    t = visited(process)
    theirs = stock(
        "HeunDiscreteScheduler",
        process,
        t,
        variance_exploding=True,
        repeats=True,
        prediction_type=prediction,
        clip_sample=False,
        **BETAS,
    )
    assert_same(ours(samplers.heun, process, t), theirs, **FP64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lms_equals_lms_discrete(stock, prediction: str):
    process = DDPM(prediction)
    t = visited(process)
    theirs = stock("LMSDiscreteScheduler", process, t, variance_exploding=True, prediction_type=prediction, **BETAS)
    # diffusers integrates numerically, to a relative error of 1e-4, what is a polynomial
    assert_same(ours(samplers.lms, process, t), theirs, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
@pytest.mark.parametrize("steps", [9, 20])
def test_dpmpp_2m_equals_dpmsolver_multistep(stock, prediction: str, steps: int):
    process = FlowMatching() if prediction == "flow" else DDPM(prediction)
    t = visited(process, steps)
    theirs = stock(
        "DPMSolverMultistepScheduler",
        process,
        t,
        prediction_type=STOCK_NAMES[prediction],
        use_flow_sigmas=prediction == "flow",
        **BETAS,
    )
    assert_same(ours(samplers.dpmpp_2m, process, t), theirs, **FP64)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
def test_dpmpp_2m_sde_equals_dpmsolver_multistep(stock, prediction: str):
    process = FlowMatching() if prediction == "flow" else DDPM(prediction)
    t = visited(process)
    theirs = stock(
        "DPMSolverMultistepScheduler",
        process,
        t,
        algorithm_type="sde-dpmsolver++",
        prediction_type=STOCK_NAMES[prediction],
        use_flow_sigmas=prediction == "flow",
        **BETAS,
    )
    assert_same(ours(samplers.dpmpp_2m_sde, process, t), theirs, **FP64)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_unipc_multistep(stock, prediction: str, order: int):
    process = FlowMatching() if prediction == "flow" else DDPM(prediction)
    t = visited(process)
    theirs = stock(
        "UniPCMultistepScheduler",
        process,
        t,
        solver_order=order,
        prediction_type=STOCK_NAMES[prediction],
        use_flow_sigmas=prediction == "flow",
        **BETAS,
    )
    assert_same(ours(samplers.unipc, process, t, order=order), theirs, **FP64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_ddim(monkeypatch: pytest.MonkeyPatch, prediction: str, eta: float):
    process = DDPM(prediction)
    t = ddpm(10, process, SIZE)  # diffusers' DDIM finds the next timestep by subtracting 100
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction, steps_offset=1, **BETAS)
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod = process.coefficients(torch.arange(1000))[0] ** 2
    rows, sample, trace = generators(2), start(), []
    for stock_t in scheduler.timesteps:
        trace.append(sample)
        pred = process.target(*two_peaks(process)(sample, stock_t), stock_t.expand(2))
        last = stock_t == scheduler.timesteps[-1]
        noise = None if eta == 0 else torch.zeros(2, 4, 3, 5) if last else _noise(rows)
        sample = scheduler.step(pred, stock_t, sample, eta=eta, variance_noise=noise).prev_sample
    if eta > 0:  # at the clean end diffusers keeps a noise of the size that it then draws, ours keeps none
        assert_same(ours(samplers.ddim, process, t, eta=eta)[:-1], trace, **FP64)
    else:
        assert_same(ours(samplers.ddim, process, t), [*trace, sample], **FP64)


def test_lcm_equals_lcm(stock):
    process = DDPM()
    t = visited(process, 4)

    def prepare(scheduler: Any) -> None:
        scheduler.alphas_cumprod = process.coefficients(torch.arange(1000))[0] ** 2

    # diffusers mixes in 0.25 / ((scaling t)^2 + 0.25) of the noisy latents; 1e6 makes that nothing
    config = {"timestep_scaling": 1e6, "original_inference_steps": 50, **BETAS}
    assert_same(ours(samplers.lcm, process, t), stock("LCMScheduler", process, t, prepare=prepare, **config), **FP64)


@pytest.mark.parametrize(
    ("sampler", "name", "repeats"),
    [
        (samplers.euler, "FlowMatchEulerDiscreteScheduler", False),
        (samplers.heun, "FlowMatchHeunDiscreteScheduler", True),
        (samplers.lcm, "FlowMatchLCMScheduler", False),
        (samplers.euler_ancestral, "LTXEulerAncestralRFScheduler", False),
    ],
)
def test_flow_samplers_equal_those_of_diffusers_from_pure_noise(stock, sampler, name: str, repeats: bool):
    process = FlowMatching()
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    t = flow(9, process, SIZE, shift=3.0)
    assert_same(ours(sampler, process, t), stock(name, process, t, repeats=repeats), **FP64)
