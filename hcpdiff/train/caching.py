"""Encode once what need not be encoded every step: latents, and the conditioning of prompts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hcpdiff.data.dataset import CacheMode, Dataset
from hcpdiff.train.objective import Objective
from hcpdiff.types import Conditioning

log = logging.getLogger("hcpdiff.train")


def fill(
    objective: Objective, datasets: Mapping[str, Dataset], *, seed: int, workers: int = 0, quiet: bool = False
) -> None:
    """Prepare the datasets of a run and fill the caches that they ask for.

    Args:
        workers: processes that decode images.
        quiet: show no progress bars.

    Raises:
        ValueError: a cache of something that this run changes, or a dataset is of no use.
    """
    family = objective.family
    for name, dataset in datasets.items():
        _check(objective, dataset.cache_latents, f"data.{name}.cache_latents", "vae", "latents change")
        _check(objective, dataset.cache_text, f"data.{name}.cache_text", "text_encoders", "its output changes")
    for name, dataset in datasets.items():
        dataset.prepare(seed, name, family.latent.multiple_of, log.info)
    device = next(family.denoiser.parameters()).device

    def encode_image(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = family.latent_distribution(images.to(device))
        return mean.cpu(), std.cpu()

    def encode_prompt(prompts: Sequence[str]) -> Conditioning:
        return family.encode_prompt(prompts).map(Tensor.cpu)

    negatives = objective.guidance is not None
    with torch.no_grad():
        for name, dataset in datasets.items():
            if dataset.cache_latents:
                key = _key(dataset.cache_latents, family.vae)
                with _bar(f"latents of {name}", "image", quiet) as show:
                    dataset.store_latents(encode_image, key, workers=workers, progress=show)
            if dataset.cache_text:
                key = _key(dataset.cache_text, family.text_encoders) + family.text_settings
                with _bar(f"prompts of {name}", "prompt", quiet) as show:
                    dataset.store_text(encode_prompt, key, negatives=negatives, progress=show)


def _check(objective: Objective, mode: CacheMode, key: str, part: str, effect: str) -> None:
    """Raise if a cache would hold what a plugin or the training changes."""
    if not mode:
        return
    thing = {"vae": "the VAE", "text_encoders": "a text encoder"}[part]
    if objective.vae_trained if part == "vae" else objective.text_trained:
        raise ValueError(f"{key}: this run trains {thing}, so {effect}; set it to false")
    layers = (ref.path for a in objective.plugins.attachments for ref in (*a.sources, *a.targets))
    if any(f"{path}.".startswith(f"{part}.") for path in layers):
        raise ValueError(f"{key}: a plugin works on {thing}, so {effect}; set it to false")


def _key(mode: CacheMode, encoder: nn.Module) -> str:
    """What a cache on disk is keyed by; one in memory has this run's encoder anyway."""
    return fingerprint(encoder) if mode == "disk" else ""


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights with their names and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _bar(title: str, unit: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for what takes longer than a second, as a function of (done, total)."""
    with tqdm(desc=title, unit=unit, delay=1, leave=False, dynamic_ncols=True, disable=quiet) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
