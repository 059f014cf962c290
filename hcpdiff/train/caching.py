"""Encode once what need not be encoded every step: latents, and the conditioning of prompts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hcpdiff.data.dataset import Dataset
from hcpdiff.train.objective import Objective
from hcpdiff.types import Conditioning

log = logging.getLogger("hcpdiff.train")


def fill(
    objective: Objective, datasets: Mapping[str, Dataset], *, seed: int, device: torch.device, workers: int = 0
) -> None:
    """Prepare the datasets of a run and fill the caches that they ask for.

    Raises:
        ValueError: a cache of something that this run changes.
    """
    family = objective.family
    for name, dataset in datasets.items():
        if dataset.cache_latents and objective.vae_trained:
            raise ValueError(f"data.{name}.cache_latents: this run trains the VAE, so latents change; set it to false")
        if dataset.cache_text and objective.text_trained:
            raise ValueError(
                f"data.{name}.cache_text: this run trains a text encoder, so its output changes; set it to false"
            )
        dataset.prepare(seed, name, family.latent.multiple_of, log.info)

    def encode_image(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = family.latent_distribution(images.to(device))
        return mean.cpu(), std.cpu()

    def encode_prompt(prompts: list[str]) -> Conditioning:
        return family.encode_prompt(prompts).map(Tensor.cpu)

    family.eval()
    with torch.no_grad():
        for dataset in datasets.values():
            if dataset.cache_latents:
                dataset.store_latents(encode_image, fingerprint(family.vae), workers=workers)
            if dataset.cache_text:
                key = fingerprint(family.text_encoders) + family.text_settings
                dataset.store_text(encode_prompt, key, negatives=objective.guidance is not None)
    family.train()


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights with their names and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
