"""The nearest matrices of a low rank (Eckart and Young 1936), whole or already in two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLE = 16  # more columns than wanted make the randomised decomposition as good as the exact one
ITERATIONS = 4


@dataclass(frozen=True)
class Target:
    """How much to keep: a rank, or the smallest one that keeps this share of the squared singular values."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("rank: give either a rank or an energy")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank: {self.rank} is no rank; use 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy: {self.energy} is no share of the squared singular values; use 0 to 1")

    def count(self, singular: Tensor, total: float) -> int | None:
        """How many of these singular values to keep; None: not even all of them are enough."""
        if self.rank is not None:
            return min(self.rank, len(singular))
        sums = singular.double().square().cumsum(0)
        enough = (sums >= float(self.energy or 0) * total * (1 - 1e-6)).nonzero()
        return int(enough[0]) + 1 if len(enough) else None


@dataclass(frozen=True)
class Factors:
    """up @ down, and how much of the squared norm it has.

    Args:
        up: (m, rank).
        down: (rank, n).
    """

    up: Tensor
    down: Tensor
    kept: float
    total: float


def factorise(matrix: Tensor, target: Target) -> Factors:
    """The nearest product of two matrices to one of (m, n).

    Where few of many ranks are wanted it is found by random projections (Halko, Martinsson and Tropp, arXiv:0909.4061),
    always the same ones.
    """
    total, smallest = float(matrix.square().sum(dtype=torch.float64)), min(matrix.shape)
    columns = (target.rank or OVERSAMPLE) + OVERSAMPLE
    while 4 * columns <= smallest:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=columns, niter=ITERATIONS)
        count = target.count(s[: columns - OVERSAMPLE], total)
        if count is not None:
            return _factors(u, s, v.T, count, total)
        columns *= 2
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return _factors(u, s, vh, target.count(s, total) or len(s), total)


def refactorise(up: Tensor, down: Tensor, target: Target) -> Factors:
    """The nearest product of smaller matrices to up @ down, without making that.

    Args:
        up: (m, rank).
        down: (rank, n).
    """
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    total = float(s.double().square().sum())
    return _factors(q_up @ u, s, vh @ q_down.T, target.count(s, total) or len(s), total)


def _factors(u: Tensor, s: Tensor, vh: Tensor, count: int, total: float) -> Factors:
    root = s[:count].sqrt()
    kept = float(s[:count].double().square().sum())
    return Factors((u[:, :count] * root).contiguous(), (root[:, None] * vh[:count]).contiguous(), kept, total)
