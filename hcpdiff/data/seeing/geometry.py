"""How all images of a dataset are cut, at once: which sizes each gets, what is cut away, what is enlarged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset


class Geometry:
    """Tables of shape (images, resolutions); the second is 1 unless the dataset has several buckets."""

    def __init__(self, dataset: Dataset) -> None:
        samples = dataset.samples
        self.index = np.asarray(samples.target_of).reshape(len(samples.items), -1)  # into the targets; -1: none
        self.has = self.index >= 0
        self.targets = np.asarray(samples.targets, dtype=np.float64).reshape(-1, 2)[self.index]  # (N, K, 2)
        sizes = np.maximum(samples.items.sizes, 1)[:, None, :].astype(np.float64)
        cover = (self.targets / sizes).max(axis=-1) if samples.resize else np.ones(self.index.shape)
        scaled = sizes * cover[..., None]
        kept = np.minimum(scaled, self.targets).prod(axis=-1) / scaled.prod(axis=-1)
        self.enlargement = np.where(self.has, cover, 0)  # how many times longer each side becomes
        self.crop_loss = np.where(self.has, np.clip(1 - kept, 0, 1), 0)  # share of the image that is cut away

    @property
    def mean_crop_loss(self) -> np.ndarray:
        """(N,) over the resolutions of each image."""
        return self.crop_loss.sum(axis=1) / np.maximum(self.has.sum(axis=1), 1)
