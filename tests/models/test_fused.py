"""The hand-written backwards against autograd of the plain formulas."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcpdiff.models import fused
from hcpdiff.models.fused import beside_gelu, gated, heads_of, modulated_norm, rms_norm


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def plain_modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


STEPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
    "modulated_norm": (
        modulated_norm,
        plain_modulated_norm,
        [normal(2, 5, 8), normal(2, 1, 8), normal(2, 1, 8, seed=1)],
    ),
    "gated": (gated, lambda x, g, u: x + g * u, [normal(2, 5, 8), normal(2, 1, 8), normal(2, 5, 8, seed=1)]),
    "beside_gelu": (
        beside_gelu,
        lambda left, x: torch.cat([left, F.gelu(x, approximate="tanh")], dim=-1),
        [normal(2, 5, 4), normal(2, 5, 8)],
    ),
    "rms_norm": (rms_norm, lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), [normal(2, 5, 3, 8), normal(8)]),
}


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", STEPS)
def test_value_and_gradients_equal_autograd_whatever_is_frozen(name: str, frozen: tuple[int, ...]) -> None:
    fused, plain, values = STEPS[name]
    results = []
    for step in (fused, plain):
        inputs = [v.clone().requires_grad_(i not in frozen) for i, v in enumerate(values)]
        output = step(*inputs)
        if output.requires_grad:
            (output * normal(*output.shape, seed=9)).sum().backward()
        results.append([output, *(x.grad for x in inputs)])
    for ours, wanted in zip(*results, strict=True):
        assert (ours is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STEPS)
def test_gradients_come_in_the_type_of_each_input(name: str) -> None:
    step, plain, values = STEPS[name]
    inputs = [v.to(torch.bfloat16).requires_grad_() for v in values]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for f, xs in ((step, inputs), (plain, exact)):
        output = f(*xs)
        (output * normal(*output.shape, seed=9).to(output.dtype)).sum().backward()
    for ours, wanted in zip(inputs, exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        # 8 bits: each of up to ten terms is rounded to 0.4 % of the largest
        torch.testing.assert_close(
            ours.grad.double(), wanted.grad, rtol=0.03, atol=0.03 * wanted.grad.abs().max().item()
        )


def layers(bias: bool = True) -> list[nn.Linear]:
    made = [nn.Linear(6, 8, bias=bias, dtype=torch.float64) for _ in range(3)]
    for i, layer in enumerate(made):
        for j, parameter in enumerate(layer.parameters()):
            parameter.data = normal(*parameter.shape, seed=i + 10 * j)
    return made


@pytest.mark.parametrize("weights_learn", [True, False])
@pytest.mark.parametrize("x_learns", [True, False])
def test_joined_projections_equal_separate_ones(weights_learn: bool, x_learns: bool) -> None:
    results = []
    for project in (heads_of, lambda x, made, size: [layer(x).unflatten(-1, (-1, size)) for layer in made]):
        made = [layer.requires_grad_(weights_learn) for layer in layers()]
        x = normal(2, 5, 6).requires_grad_(x_learns)
        outputs = project(x, made, 4)
        if weights_learn or x_learns:
            sum((y * normal(*y.shape, seed=i)).sum() for i, y in enumerate(outputs)).backward()
        results.append([*outputs, x.grad, *(p.grad for layer in made for p in layer.parameters())])
    for ours, wanted in zip(*results, strict=True):
        assert (ours is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


def test_whatever_is_attached_to_a_projection_is_respected() -> None:
    x = normal(2, 5, 6)
    seen: list[str] = []

    class Wrapped(nn.Module):
        def __init__(self, host: nn.Linear) -> None:
            super().__init__()
            self.host = host

        def forward(self, x: Tensor) -> Tensor:
            return self.host(x) + 1

    hooked, pre_hooked, patched = layers(), layers(), layers()
    hooked[0].register_forward_hook(lambda *_: seen.append("hook"))
    pre_hooked[1].register_forward_pre_hook(lambda *_: seen.append("pre-hook"))
    patched[2].forward = lambda x: seen.append("patched") or F.linear(x, patched[2].weight)  # type: ignore[method-assign]
    for case in (hooked, pre_hooked, patched, layers(bias=False)):
        heads_of(x, case, 4)
    assert seen == ["hook", "pre-hook", "patched"]
    wrapped = heads_of(x, [Wrapped(layers()[0]), *layers()[1:]], 4)
    torch.testing.assert_close(wrapped[0], heads_of(x, layers(), 4)[0] + 1)


def test_frozen_projections_keep_nothing_but_their_weights() -> None:
    measure = pytest.importorskip("tests.benchmarks.measure")
    frozen = [layer.requires_grad_(False) for layer in layers()]
    x = normal(2, 50, 6).requires_grad_()
    assert measure.saved_bytes(lambda: heads_of(x, frozen, 4)) == 0
    assert measure.saved_bytes(lambda: gated(x, normal(2, 1, 6), x)) == 2 * 6 * 8, "the gate alone"


def test_gelu_made_again_gives_the_same_gradients_and_is_not_kept() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(8, 64), torch.nn.Linear(64, 8)
    x = torch.randn(2, 5, 8)

    def run(again: bool) -> tuple[list[Tensor], int]:
        for layer in (first, second):
            layer.zero_grad()
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        context = fused.making_again() if again else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), context:
            y = second(fused.gelu(first(x)))
        y.square().sum().backward()
        return [p.grad.clone() for layer in (first, second) for p in layer.parameters()], sum(kept.values())

    plain, plain_bytes = run(False)
    again, again_bytes = run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert plain_bytes - again_bytes == 2 * 5 * 64 * 4  # the output of gelu


def test_what_stands_beside_a_gelu_is_made_again_too() -> None:
    measure = pytest.importorskip("tests.benchmarks.measure")
    left, x = (normal(2, 50, width).requires_grad_() for width in (4, 16))
    weight = nn.Parameter(normal(20, 8))

    def run() -> Tensor:
        return beside_gelu(left, x) @ weight

    def made_again() -> Tensor:
        with fused.making_again():
            return run()

    results = [torch.autograd.grad(f().square().sum(), (left, x, weight)) for f in (run, made_again)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    kept = [measure.saved_bytes(f) for f in (run, made_again)]
    assert kept[0] == (16 + 20) * 100 * 8, "the GELU's input and its output beside the other"
    assert kept[1] == (16 + 4) * 100 * 8, "both inputs instead"


def test_gelu_that_is_changed_in_place_is_kept_as_it_is() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 4)
    x = torch.randn(3, 16, requires_grad=True)
    with fused.making_again():
        hidden = fused.gelu(x * 1)
        hidden.mul_(2)
        layer(hidden).sum().backward()
    expected = (2 * torch.nn.functional.gelu(x.detach(), approximate="tanh")).sum(0)
    torch.testing.assert_close(layer.weight.grad, expected.expand(4, -1))
