"""Samples of one size to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hcpdiff.types import Batch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; where only some have a loss mask, the others count fully.

    Raises:
        ValueError: only some have a condition image.
    """
    names = set().union(*(sample.inputs for sample in samples))
    for sample in samples:
        if lacking := sorted(names - sample.inputs.keys()):
            raise ValueError(
                f"source: {sample.key} has no {lacking[0]}, which other images of its batch have; give all images of a "
                "dataset one, or make two datasets of them"
            )
    masked = any(sample.loss_mask is not None for sample in samples)
    return Batch(
        keys=[sample.key for sample in samples],
        prompts=[sample.prompt for sample in samples],
        sizes=[sample.size for sample in samples],
        images=torch.stack([sample.image for sample in samples]),
        loss_mask=torch.stack([_mask(sample) for sample in samples]) if masked else None,
        inputs={name: torch.stack([sample.inputs[name] for sample in samples]) for name in samples[0].inputs},
    )


def with_row_weights(batch: Batch, weights: Sequence[float]) -> Batch:
    """The batch with the loss of each row weighted."""
    factors = torch.tensor(weights, dtype=torch.float32).view(-1, 1, 1, 1)
    if batch.loss_mask is None:
        height, width = batch.images.shape[-2:]
        return replace(batch, loss_mask=factors.expand(-1, 1, height, width).contiguous())
    return replace(batch, loss_mask=batch.loss_mask * factors)


def _mask(sample: Sample) -> Tensor:
    return torch.ones(1, *sample.image.shape[-2:]) if sample.loss_mask is None else sample.loss_mask
