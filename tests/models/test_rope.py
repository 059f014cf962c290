"""Rotary positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hcpdiff.models.rope import rotated, rotation

AXES = (2, 4, 6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_only_the_distance_of_two_tokens_counts_in_their_product() -> None:
    turn = rotation(5, 7, AXES).unflatten(0, (5, 7))
    query, key = normal(1, 1, 3, 12), normal(1, 1, 3, 12, seed=1)

    def product(a: tuple[int, int], b: tuple[int, int]) -> Tensor:
        return (rotated(query, turn[a][None]) * rotated(key, turn[b][None])).sum(-1)

    torch.testing.assert_close(product((0, 1), (2, 4)), product((2, 3), (4, 6)))  # two rows down, three columns right
    for other in ((2, 5), (1, 4), (0, 1)):
        assert (product((0, 1), other) - product((0, 1), (2, 4))).abs().max() > 0.01


def test_text_and_the_first_place_do_not_turn_and_lengths_are_kept() -> None:
    x, turn = normal(2, 6 + 3, 2, 12), rotation(2, 3, AXES, text=3)
    turned = rotated(x, turn)
    torch.testing.assert_close(turned[:, 6:], x[:, 6:], rtol=0, atol=0)
    torch.testing.assert_close(turned[:, 0], x[:, 0], rtol=0, atol=0)
    assert (turned[:, 1:6] - x[:, 1:6]).abs().amax(-1).min() > 0.01
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_gives_the_same_values_and_gradients(dtype: torch.dtype) -> None:
    turn = rotation(2, 3, AXES)
    results = []
    for run in (rotated, torch.compile(rotated, fullgraph=True, backend="aot_eager")):
        x = normal(2, 6, 2, 12).to(dtype).requires_grad_()
        y = run(x, turn)
        assert y.dtype == dtype
        (y * normal(*y.shape, seed=3).to(dtype)).sum().backward()
        results.append((y, x.grad))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)
