"""Rotations of a weight's rows: Diag-OFT and BOFT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hcpdiff.formats.changes import Change

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class OFT(Change):
    """Rotations of the weight's rows: in blocks (Diag-OFT, arXiv:2306.07280) or in m stages (BOFT, arXiv:2311.06243).

    A block is turned by (I + Q) (I - Q)^-1 with Q = block - block^T.

    Args:
        blocks: (num, size, size), with num * size rows; of BOFT (m, num, size, size).
        rescale: (out, 1) or (out, 1, 1, 1), what the turned rows are multiplied with.
        alpha: the constraint: the norm of all Q is at most alpha times the number of rows; None or 0: no limit.
    """

    NAMES: ClassVar = {"blocks": "oft_blocks", "rescale": "rescale"}

    blocks: Tensor
    rescale: Tensor | None = None
    alpha: float | None = None

    @property
    def staged(self) -> bool:
        """Whether this is BOFT."""
        return self.blocks.ndim == 4

    def num_rows(self) -> int:
        return self.blocks.shape[-3] * self.blocks.shape[-1]

    def rows(self, start: int, stop: int) -> Self:
        size = self.blocks.shape[-1]
        if self.staged or start % size or stop % size:
            raise ValueError(f"{'a BOFT' if self.staged else 'an OFT'} that turns rows of several layers together")
        rescale = None if self.rescale is None else self.rescale[start:stop]
        blocks = self.blocks.float() * self._limit()
        return replace(self, blocks=blocks[start // size : stop // size], rescale=rescale, alpha=None)

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        eye = torch.eye(self.blocks.shape[-1], device=self.blocks.device)
        q = self._skew() * self._limit()
        turn = eye + strength * ((eye + q) @ torch.linalg.inv(eye - q) - eye)
        turned = weight.float()
        if self.staged:
            for i, stage in enumerate(turn):
                turned = _butterfly(turned, stage, 2**i)
        else:
            turned = torch.einsum("bij,bi...->bj...", turn, turned.unflatten(0, turn.shape[:2])).flatten(0, 1)
        if self.rescale is None:
            return turned
        return turned * (1 + strength * (self.rescale.float().view(-1, *[1] * (weight.ndim - 1)) - 1))

    def _skew(self) -> Tensor:
        return self.blocks.float() - self.blocks.float().transpose(-1, -2)

    def _limit(self) -> Tensor | float:
        if not self.alpha:
            return 1.0
        return (self.alpha * self.num_rows() / (self._skew().norm() + 1e-8)).clamp(max=1)


def _butterfly(weight: Tensor, blocks: Tensor, reach: int) -> Tensor:
    """One stage of BOFT: blocks (num, size, size) turn rows that are further apart from stage to stage."""
    size = blocks.shape[-1]
    apart = reach * size // 2
    mixed = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
    mixed = torch.einsum("bij,bj...->bi...", blocks, mixed).flatten(0, 1)
    return mixed.unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
