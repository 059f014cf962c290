"""Samplers against published formulas that no scheduler of diffusers computes in the same way.

k-diffusion works on x / alpha with s = sigma / alpha and lambda = -log s. The formulas are written down here in those
terms, for DDPM and for flow matching alike (its paths are the same lines after dividing by alpha).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.process import DDPM, FlowMatching, Process
from hcpdiff.diffusion.timesteps import flow, karras
from tests.diffusion.analytic import generators, two_peaks

FP64 = {"atol": 1e-9, "rtol": 0.0}  # fp64 rounding, on values up to 15 in x / alpha
PROCESSES = {"epsilon": DDPM(), "v": DDPM("v_prediction"), "flow": FlowMatching()}


def start() -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def visited(process: Process) -> Tensor:
    if process.prediction == "flow":
        return flow(8, process, (64, 64), shift=3.0) * 0.99  # x / alpha is infinite at 1000
    return karras(8, process, (64, 64))  # between whole timesteps too


class Exploding:
    """A process in k-diffusion's terms: x / alpha, its levels s, the clean prediction, and noise."""

    def __init__(self, process: Process, t: Tensor) -> None:
        alphas, sigmas = process.trajectory(t)
        self.t, self.alphas, self.levels = t, alphas.tolist(), (sigmas / alphas).tolist()
        self.model, self.rows = two_peaks(process), generators(2)
        self.x = start() / self.alphas[0]

    def clean(self, i: int) -> Tensor:
        return self.model(self.alphas[i] * self.x, self.t[i])[0]

    def noise(self) -> Tensor:
        return torch.stack([torch.randn(4, 3, 5, generator=g) for g in self.rows]).double()


def k_diffusion_2m_sde(process: Process, t: Tensor, eta: float) -> Tensor:
    k, old, h_old = Exploding(process, t), None, 0.0
    for i in range(len(t)):
        clean, s, s_next = k.clean(i), k.levels[i], k.levels[i + 1]
        if s_next == 0:
            return clean
        h = math.log(s / s_next)
        k.x = s_next / s * math.exp(-eta * h) * k.x + (1 - math.exp(-h - eta * h)) * clean
        if old is not None:
            k.x = k.x + 0.5 * (1 - math.exp(-h - eta * h)) * (h / h_old) * (clean - old)
        k.x = k.x + s_next * math.sqrt(1 - math.exp(-2 * eta * h)) * (k.noise() if eta else 0)
        old, h_old = clean, h
    raise AssertionError


def k_diffusion_3m_sde(process: Process, t: Tensor, eta: float) -> Tensor:
    k = Exploding(process, t)
    past: list[tuple[Tensor, float]] = []  # (clean, the step that followed), newest first
    for i in range(len(t)):
        clean, s, s_next = k.clean(i), k.levels[i], k.levels[i + 1]
        if s_next == 0:
            return clean
        h = math.log(s / s_next)
        g = h * (1 + eta)
        phi_2 = (math.exp(-g) - 1) / g + 1
        phi_3 = phi_2 / g - 0.5
        k.x = math.exp(-g) * k.x + (1 - math.exp(-g)) * clean
        if len(past) == 1:
            k.x = k.x + phi_2 * (clean - past[0][0]) / (past[0][1] / h)
        if len(past) == 2:
            r0, r1 = past[0][1] / h, past[1][1] / h
            d_0, d_1 = (clean - past[0][0]) / r0, (past[0][0] - past[1][0]) / r1
            k.x = k.x + phi_2 * (d_0 + (d_0 - d_1) * r0 / (r0 + r1)) - phi_3 * (d_0 - d_1) / (r0 + r1)
        k.x = k.x + s_next * math.sqrt(1 - math.exp(-2 * eta * h)) * (k.noise() if eta else 0)
        past = [(clean, h), *past[:1]]
    raise AssertionError


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["2m", "3m"])
def test_sde_samplers_equal_k_diffusion(process: Process, eta: float, name: str):
    t = visited(process)
    theirs = {"2m": k_diffusion_2m_sde, "3m": k_diffusion_3m_sde}[name](process, t, eta)
    sampler = {"2m": samplers.dpmpp_2m_sde, "3m": samplers.dpmpp_3m_sde}[name]
    torch.testing.assert_close(
        sampler(two_peaks(process), start(), t, process, generators=generators(2), eta=eta), theirs, **FP64
    )


@pytest.mark.parametrize("process", [PROCESSES["epsilon"], PROCESSES["v"]], ids=["epsilon", "v"])
def test_ancestral_sampling_equals_k_diffusion_for_any_eta(process: Process):
    t, eta = visited(process), 0.7
    k = Exploding(process, t)
    for i in range(len(t)):
        clean, s, s_next = k.clean(i), k.levels[i], k.levels[i + 1]
        up = min(s_next, eta * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
        down = math.sqrt(s_next**2 - up**2)
        k.x = k.x + (k.x - clean) / s * (down - s) + (up * k.noise() if up else 0)
    mine = samplers.euler_ancestral(two_peaks(process), start(), t, process, generators=generators(2), eta=eta)
    torch.testing.assert_close(mine, k.x, **FP64)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", PROCESSES)
def test_lms_integrates_the_interpolated_slopes(name: str, order: int):
    process = PROCESSES[name]
    t, model, x = visited(process), two_peaks(process), start()
    alphas, sigmas = process.trajectory(t)
    scales = torch.ones_like(alphas) if name == "flow" else alphas  # flow's slope is that of x itself
    levels = (sigmas / scales).tolist()
    nodes, weights = np.polynomial.legendre.leggauss(4)  # exact up to degree 7
    slopes: list[Tensor] = []
    for i in range(len(t)):
        clean, noise = model(x, t[i])
        slopes.insert(0, noise - clean if name == "flow" else noise)
        known = slopes[:order]
        at = [levels[i - k] for k in range(len(known))]
        low, high = levels[i], levels[i + 1]
        points = (low + high) / 2 + (high - low) / 2 * nodes
        x = x / scales[i]
        for j, slope in enumerate(known):
            basis = np.prod([(points - a) / (at[j] - a) for k, a in enumerate(at) if k != j], axis=0)
            x = x + (high - low) / 2 * float(np.sum(weights * basis)) * slope
        x = x * scales[i + 1]
    torch.testing.assert_close(samplers.lms(model, start(), t, process, order=order), x, **FP64)


@pytest.mark.parametrize("name", PROCESSES)
def test_heun_equals_the_algorithm_of_karras(name: str):
    process = PROCESSES[name]
    t, model, x = visited(process), two_peaks(process), start()
    alphas, sigmas = process.trajectory(t)
    scales = torch.ones_like(alphas) if name == "flow" else alphas
    levels = sigmas / scales
    times = [*t, None]

    def slope(y: Tensor, i: int) -> Tensor:
        clean, noise = model(scales[i] * y, times[i])
        return noise - clean if name == "flow" else noise

    y = x / scales[0]
    for i in range(len(t)):
        step, first = levels[i + 1] - levels[i], slope(y, i)
        ahead = y + step * first
        y = ahead if levels[i + 1] == 0 else y + step * (first + slope(ahead, i + 1)) / 2
    torch.testing.assert_close(samplers.heun(model, start(), t, process), y, **FP64)
