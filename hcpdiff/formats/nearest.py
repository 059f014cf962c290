"""The LoRA that is nearest to another change of weights, for programs that read nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hcpdiff.formats.changes import Additive, AnyChange, Changes, mapped
from hcpdiff.formats.dora import DoRA
from hcpdiff.formats.lora_files import Update, listing

RANK = 64


@dataclass(frozen=True)
class Nearest:
    """LoRAs and DoRAs, and what is lost."""

    updates: dict[str, AnyChange]
    lost: dict[str, float]  # {layer that was no LoRA: |rest| / |change|}


def loras(updates: Changes, rank: int, family: str) -> Nearest:
    """Every change as a LoRA, or as a DoRA of one, of at most this rank; what is a LoRA stays as it is.

    Args:
        family: one of `names.ARCHITECTURES`.

    Raises:
        ValueError: listing the layers whose change depends on the model's weights, or that are no matrices.
    """
    if rank < 1:
        raise ValueError(f"rank: {rank} is no rank; use 1 or more")
    if unfit := [layer for layer, update in updates.items() if not _fits(update)]:
        raise ValueError(
            f"{len(unfit)} of {len(updates)} layers have changes that no LoRA can be, of norms or such as depend on "
            f"the model's weights; merge them with the model instead: {listing(unfit)}"
        )
    pairs = {layer: _nearest(update, rank, _kernel(layer, family)) for layer, update in updates.items()}
    lost = {layer: rest for layer, (_, rest) in pairs.items() if rest is not None}
    return Nearest({layer: update for layer, (update, _) in pairs.items()}, lost)


def _fits(update: AnyChange) -> bool:
    if isinstance(update, DoRA):
        return _fits(update.of)
    if not isinstance(update, Additive):
        return isinstance(update, Update)
    return mapped(update, lambda tensor: tensor.to("meta")).delta().ndim > 1


def _kernel(layer: str, family: str) -> int | None:
    """The size of a convolution's kernel, which flat matrices do not say; None for a linear layer."""
    name = layer.rpartition(".")[2]
    if layer.endswith("pos_embed.proj"):
        return 2
    if name == "conv_shortcut" or (family == "sd" and name in ("proj_in", "proj_out")):
        return 1
    return 3 if name in ("conv", "conv1", "conv2", "conv_in", "conv_out") else None


def _nearest(update: AnyChange, rank: int, kernel: int | None) -> tuple[AnyChange, float | None]:
    if isinstance(update, Update):
        return update, None
    if isinstance(update, DoRA):
        inner, rest = _nearest(update.of, rank, kernel)
        return replace(update, of=inner), rest
    assert isinstance(update, Additive)
    whole, bias = update.delta(), update.applied_bias(None)
    up, down, rest = decompose(whole.flatten(1), rank)
    if kernel is None:
        return Update(down, up, bias=bias), rest
    return Update(down.unflatten(1, (-1, kernel, kernel)), up[:, :, None, None], bias=bias), rest


def decompose(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """up (m, rank) and down (rank, n) with the product nearest to a matrix, and |the rest| / |the matrix|."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    rest = float(s[rank:].norm() / s.norm()) if s.any() else 0.0
    return u[:, :rank] * root, root[:, None] * v[:rank], rest
