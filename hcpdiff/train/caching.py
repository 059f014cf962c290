"""Encode once what need not be encoded every step: latents, and the conditioning of prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from hcpdiff.data.cache import ALONE, Team
from hcpdiff.data.dataset import CacheMode, Dataset
from hcpdiff.data.streams import Datasets
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.train import progress
from hcpdiff.train.fingerprints import fingerprint, in_words, of_tokenizer
from hcpdiff.train.idle import on_device
from hcpdiff.train.objective import Objective
from hcpdiff.train.words import check_used
from hcpdiff.types import Conditioning

log = logging.getLogger("hcpdiff.train")

_AT_ONCE = 8  # images or prompts that are encoded together, always as many: how sums are rounded depends on it


@dataclass
class Encoders:
    """How the caches of a run are made, and what tells them from those of other models.

    What they give for an image or a prompt does not depend on what it is encoded with, so that a cache holds the same
    whatever it was filled for, by how many processes, and however often that was interrupted.

    Args:
        device: where to encode.
    """

    objective: Objective
    device: torch.device
    _fingerprints: dict[str, str] = field(default_factory=dict)

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder`."""
        full = images[torch.arange(_AT_ONCE) % len(images)]
        mean, std = self.objective.family.latent_distribution(full.to(self.device))
        return mean[: len(images)].cpu(), std[: len(images)].cpu()

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """See `PromptEncoder`."""
        full = [prompts[i % len(prompts)] for i in range(_AT_ONCE)]
        return self.objective.family.encode_prompt(full).map(lambda tensor: tensor[: len(prompts)].cpu())

    def key(self, part: str, mode: CacheMode) -> str:
        """What a cache on disk is keyed by; one in memory has this run's encoder anyway."""
        if mode != "disk":
            return ""
        family = self.objective.family
        if part not in self._fingerprints:
            self._fingerprints[part] = fingerprint(family.get_submodule(part))
        if part != "text_encoders":
            return self._fingerprints[part]
        tokenizers = [f"{name}={of_tokenizer(each)}" for name, each in getattr(family, "tokenizers", {}).items()]
        return " ".join([self._fingerprints[part], family.text_settings, *tokenizers])

    def about(self, part: str) -> str:
        """The encoder in words."""
        return in_words(self.objective.family.get_submodule(part))

    @property
    def negatives(self) -> bool:
        """Whether the run uses negative prompts."""
        return self.objective.guidance is not None


def prepare(objective: Objective, datasets: Datasets, *, seed: int, quiet: bool = False) -> None:
    """Look over the datasets of a run.

    Args:
        quiet: show no progress bars.

    Raises:
        ValueError: a cache of something that this run changes, a dataset is of no use, or a word is in no prompt.
    """
    for name, dataset in datasets.items():
        _check(objective, dataset.cache_latents, f"data.{name}.cache_latents", "vae", "latents change")
        _check(objective, dataset.cache_text, f"data.{name}.cache_text", "text_encoders", "its output changes")
    for name, dataset in datasets.items():
        spec = objective.family.latent
        with progress.bar(f"looking over {name}", "image", quiet) as show:
            dataset.prepare(seed, name, spec.multiple_of, log.info, max_side=spec.max_side, progress=show)
    if objective.words is not None:
        check_used(objective.words, datasets, negatives=objective.guidance is not None)


def fill(
    objective: Objective,
    datasets: Datasets,
    *,
    seed: int,
    workers: int = 0,
    quiet: bool = False,
    device: torch.device | None = None,
    team: Team = ALONE,
) -> None:
    """Prepare the datasets of a run and fill the caches that they ask for.

    Args:
        workers: processes that decode images.
        quiet: show no progress bars.
        device: where to encode; default: where the model is.
        team: the processes of the run, which share the work.

    Raises:
        ValueError: a cache of something that this run changes, or a dataset is of no use.
    """
    prepare(objective, datasets, seed=seed, quiet=quiet)
    family = objective.family
    encoders = Encoders(objective, device or next(family.denoiser.parameters()).device)
    known = {name: dataset for name, dataset in datasets.items() if isinstance(dataset, Dataset)}
    latents = {name: dataset for name, dataset in known.items() if dataset.cache_latents}
    texts = {name: dataset for name, dataset in known.items() if dataset.cache_text}
    if latents:
        with torch.no_grad(), on_device(family.vae, encoders.device):
            for name, dataset in latents.items():
                with progress.bar(f"latents of {name}", "image", quiet) as show:
                    dataset.store_latents(
                        encoders.encode_image,
                        encoders.key("vae", dataset.cache_latents),
                        batch_size=_AT_ONCE,
                        workers=workers,
                        progress=show,
                        about=encoders.about("vae"),
                        team=team,
                    )
    if texts:
        with torch.no_grad(), on_device(family.text_encoders, encoders.device):
            for name, dataset in texts.items():
                with progress.bar(f"prompts of {name}", "prompt", quiet) as show:
                    dataset.store_text(
                        encoders.encode_prompt,
                        encoders.key("text_encoders", dataset.cache_text),
                        negatives=encoders.negatives,
                        batch_size=_AT_ONCE,
                        progress=show,
                        about=encoders.about("text_encoders"),
                        team=team,
                    )


def team_of(accelerator: Accelerator) -> Team:
    """The processes of a run."""
    if accelerator.num_processes == 1:
        return ALONE

    def most(number: int) -> int:
        numbers = accelerator.gather(torch.tensor([number], dtype=torch.int64, device=accelerator.device))
        assert isinstance(numbers, Tensor)
        return int(numbers.max())

    local = accelerator.local_process_index
    return Team(accelerator.process_index, accelerator.num_processes, local, most(local) + 1, most)


def unused_parts(datasets: Datasets, plugins: PluginGroup) -> list[str]:
    """The parts of the model that training itself does not use, as all that they give is cached."""
    parts = []
    encode = any(a.plugin.reads is None or a.plugin.reads for a in plugins.attachments)  # e.g. a ControlNet its image
    encoded = all(isinstance(dataset, Dataset) and dataset.encoded_inputs for dataset in datasets.values())
    if all(dataset.latents is not None for dataset in datasets.values()) and (encoded or not encode):
        parts.append("vae")
    if all(dataset.text is not None for dataset in datasets.values()):
        parts.append("text_encoders")
    return parts


def _check(objective: Objective, mode: CacheMode, key: str, part: str, effect: str) -> None:
    """Raise if a cache would hold what a plugin or the training changes."""
    if not mode:
        return
    if part == "text_encoders" and objective.words_trained:
        raise ValueError(f"{key}: this run trains words, whose meaning changes; set it to false")
    thing = {"vae": "the VAE", "text_encoders": "a text encoder"}[part]
    if objective.vae_trained if part == "vae" else objective.text_trained:
        raise ValueError(f"{key}: this run trains {thing}, so {effect}; set it to false")
    layers = (ref.path for a in objective.plugins.attachments for ref in (*a.sources, *a.targets))
    if any(f"{path}.".startswith(f"{part}.") for path in layers):
        raise ValueError(f"{key}: a plugin works on {thing}, so {effect}; set it to false")
