from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hcpdiff.train.optimizers import Muon, orthogonalise


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(90, 16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 64), nn.Linear(64, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> float:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(90, (32,), generator=generator)
        loss = (model(ids) - torch.stack([ids % 2, ids % 3], dim=1).float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 40), (2, 40, 16)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices, 6).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5  # the coefficients trade exactness for speed
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ result @ vh.mT  # diagonal if the singular vectors are the same
    off = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 0.05  # bfloat16


def test_muon_trains_matrices_and_leaves_embeddings_vectors_and_thin_matrices_to_adamw() -> None:
    model = a_model()
    optimizer = Muon(model.parameters(), min_side=16)
    train(model, optimizer, 1)
    by_muon = {name for name, p in model.named_parameters() if "momentum" in optimizer.state[p]}
    assert by_muon == {"1.weight", "3.weight"}
    assert all("exp_avg_sq" in optimizer.state[p] for name, p in model.named_parameters() if name not in by_muon)


def test_what_muon_does_not_train_moves_as_under_torchs_adamw() -> None:
    ours, theirs = a_model(), a_model()
    train(ours, Muon(ours.parameters(), lr=2e-2, adamw_ratio=0.5, betas=(0.8, 0.9), weight_decay=0.1, min_side=100), 5)
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1), 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_muon_trains_moves_as_under_torchs_muon() -> None:
    torch.manual_seed(0)
    ours = nn.ModuleList([nn.Linear(8, 24, bias=False), nn.Linear(24, 8, bias=False)])
    theirs = copy.deepcopy(ours)
    torchs = torch.optim.Muon(
        theirs.parameters(), lr=2e-2, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for model, optimizer in (
        (ours, Muon(ours.parameters(), lr=2e-2, momentum=0.9, weight_decay=0.1, min_side=8)),
        (theirs, torchs),
    ):
        for step in range(4):
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (model[1](model[0](x)) - x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # both iterate in bfloat16; a step moves 0.02 * 0.2


def test_each_group_has_its_own_rate_and_zero_trains_nothing() -> None:
    model = a_model()
    before = copy.deepcopy(model.state_dict())
    groups = [{"params": model[1].parameters(), "lr": 0.0}, {"params": model[3].parameters()}]
    train(model, Muon(groups, lr=1e-2, min_side=16), 1)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"3.weight", "3.bias"}


def test_a_loaded_state_goes_on_exactly() -> None:
    model = a_model()
    optimizer = Muon(model.parameters(), min_side=16)
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    resumed = Muon(other.parameters(), min_side=16)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, start=3)
    train(other, resumed, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_muon_learns() -> None:
    model = a_model()
    optimizer = Muon(model.parameters(), lr=2e-2, min_side=16)
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 60, start=1) < 0.2 * first
