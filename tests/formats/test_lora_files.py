from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hcpdiff.formats.lora_files import Update, folded, fuse, split, with_one_alpha, without_mid
from hcpdiff.formats.modules import grouped

D = 6


def update(rank: int, rows: int = D, alpha: float | None = None, seed: int = 0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    return Update(torch.randn(rank, D, generator=generator), torch.randn(rows, rank, generator=generator), alpha)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("alpha", [None, 4.0, 1.0, 3.0])
def test_folding_keeps_the_change_and_makes_alpha_the_rank(alpha: float | None) -> None:
    before = update(4, alpha=alpha)
    after = folded(before)
    assert after.scale == 1
    assert close(after.delta(), before.delta())


@pytest.mark.parametrize("shares", [(1, 1, 1), (1, 1, 1, 4)])
@pytest.mark.parametrize("settings", [[(4, 1.0)], [(4, 1.0), (2, 1.0)], [(4, 1.0), (4, 2.0)], [(4, None)]])
def test_a_fused_layer_changes_as_its_parts_do_and_comes_apart_again(
    shares: tuple[int, ...], settings: list[tuple[int, float | None]]
) -> None:
    parts = [
        update(*settings[i % len(settings)][:1], share * D, settings[i % len(settings)][1], seed=i)
        for i, share in enumerate(shares)
    ]
    whole = fuse(parts, shares)
    assert close(whole.delta(), torch.cat([part.delta() for part in parts]))
    assert whole.rank == sum(part.rank for part in parts)
    again = split(whole, shares)
    assert all(close(a.delta(), b.delta()) for a, b in zip(again, parts, strict=True))
    if len(settings) == 1:  # of one rank, the parts are what they were
        assert whole.scale == parts[0].scale
        assert [part.rank for part in again] == [4] * len(shares)
        assert all(torch.equal(a.up, b.up) for a, b in zip(again, parts, strict=True))


def test_alpha_grows_with_the_rank_of_a_fused_layer() -> None:
    whole = fuse([update(4, alpha=1.0, seed=i) for i in range(3)], (1, 1, 1))
    assert (whole.rank, whole.alpha) == (12, 3.0)


def test_a_part_that_does_not_change_is_zeros() -> None:
    parts = [update(2, alpha=1.0), None, update(2, alpha=1.0, seed=1)]
    whole = fuse(parts, (1, 1, 1))
    assert not whole.delta()[D : 2 * D].any()
    assert close(whole.delta()[2 * D :], update(2, alpha=1.0, seed=1).delta())


def test_a_whole_that_is_not_made_of_parts_gives_each_its_rows() -> None:
    whole = update(4, 3 * D, alpha=2.0)
    parts = split(whole, (1, 1, 1))
    assert close(torch.cat([part.delta() for part in parts]), whole.delta())
    assert fuse(parts, (1, 1, 1)).rank == 4, "what came from one comes back as one"
    with pytest.raises(ValueError, match="18 rows, which do not divide by 7"):
        split(whole, (1, 1, 1, 4))


def test_one_alpha_for_all_keeps_every_change() -> None:
    before = {"a": update(4, alpha=1.0), "b": update(4, alpha=1.0, seed=1), "c": update(2, alpha=3.0, seed=2)}
    after = with_one_alpha(before)
    assert {u.alpha for u in after.values()} == {1.0}
    assert all(close(after[key].delta(), before[key].delta()) for key in before)
    assert torch.equal(after["a"].up, before["a"].up)


def test_tuckers_three_matrices_become_two() -> None:
    g = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(s, generator=g) for s in ((2, 3, 1, 1), (2, 2, 3, 3), (5, 2, 1, 1)))
    plain = without_mid(Update(down, up, 1.0, mid))
    full = torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
    assert plain.down.shape == (2, 3, 3, 3)
    assert close(plain.delta(), full / 2)


def test_modules_without_a_pair_mean_nothing() -> None:
    found, unknown = grouped({"lora_unet_a.lora_down.weight": torch.zeros(2, 2)})
    assert not found
    assert unknown == ["lora_unet_a (lora_down.weight: the other matrix is missing)"]


@pytest.mark.parametrize("bias", [None, torch.ones(D)])
def test_an_update_is_applied_to_a_weight_and_a_bias_with_a_strength(bias: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(3)
    change = Update(torch.randn(2, D, generator=generator), torch.randn(D, 2, generator=generator), 1.0, bias=bias)
    weight = torch.randn(D, D, 1, 1, generator=generator)
    assert close(change.applied(weight, 0.5), weight + 0.5 * change.delta()[:, :, None, None])
    before = torch.zeros(D)
    after = change.applied_bias(before, 0.5)
    assert after is not None
    assert close(after, before if bias is None else 0.25 * bias)
    assert change.applied_bias(None) is None or bias is not None
