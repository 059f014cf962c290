"""Families whose models lie in the folders of diffusers' pipelines."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from types import SimpleNamespace
from typing import Any

from torch import nn

from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec, ModelFamily
from hcpdiff.models.folder import ModelFolder


class PretrainedFamily(ModelFamily):
    """Adds what needs a model's configs alone: its skeleton, and the shape of its latents."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> ModelFamily:
        """Read a model."""

    @classmethod
    @abstractmethod
    def _files(cls, *args: Any, only_configs: bool = False, **kwargs: Any) -> ModelFolder:
        """The model's files; the arguments are some of those of `from_pretrained`."""

    @staticmethod
    @abstractmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        """Of a denoiser and a VAE, with or without weights."""

    @classmethod
    def skeleton(cls, part: str, /, *args: Any, **kwargs: Any) -> nn.Module:
        """`part` of what `from_pretrained` would give for the same arguments, on the meta device, without its weights.

        Args:
            part: "denoiser", "vae", "text_encoders" or e.g. "text_encoders.clip_l".
        """
        return cls._configs(*args, **kwargs).skeleton(part)

    @classmethod
    def latent_spec(cls, *args: Any, **kwargs: Any) -> LatentSpec:
        files = cls._configs(*args, **kwargs)
        vae = SimpleNamespace(config=autoencoder.config(files.folder("vae")))  # its layers take seconds to import
        return cls._latent_spec(files.skeleton("denoiser"), vae)

    @classmethod
    def _configs(cls, *args: Any, **kwargs: Any) -> ModelFolder:
        """The folder that `from_pretrained` would read for these arguments, for its configs."""
        given = inspect.signature(cls.from_pretrained).bind(*args, **kwargs)
        given.apply_defaults()
        wanted = inspect.signature(cls._files).parameters
        return cls._files(**{k: v for k, v in given.arguments.items() if k in wanted}, only_configs=True)
