"""Tiny models of every family that has single files, and how two are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hcpdiff.models.flux.family import Flux
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from hcpdiff.models.sdxl import SDXL
from tests.models.tiny import randomise, tiny_pipeline
from tests.models.tiny_flux import tiny_flux_pipeline
from tests.models.tiny_unet import tiny_sd, tiny_sdxl


def tiny_sd2() -> Any:
    """With the text encoder of SD 2, which is told by its activation."""
    from transformers import CLIPTextConfig, CLIPTextModel

    pipeline = tiny_sd("v_prediction")
    config = CLIPTextConfig(**pipeline.text_encoder.config.to_dict() | {"hidden_act": "gelu"})
    pipeline.text_encoder = CLIPTextModel(config).eval()
    randomise(pipeline.text_encoder)
    return pipeline


MODELS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "sd1": (StableDiffusion, tiny_sd),
    "sd2": (StableDiffusion, tiny_sd2),
    "sdxl": (SDXL, tiny_sdxl),
    "sd3-medium": (SD3, lambda: tiny_pipeline(t5=True)),
    "sd3.5-medium": (SD3, lambda: tiny_pipeline(shape="sd3.5-medium")),
    "sd3.5-large": (SD3, lambda: tiny_pipeline(shape="sd3.5-large")),
    "flux-dev": (Flux, lambda: tiny_flux_pipeline("dev")),
    "flux-schnell": (Flux, lambda: tiny_flux_pipeline("schnell")),
}


def state(family: Any) -> dict[str, Tensor]:
    return family.state_dict()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key]) or one[key].dtype != other[key].dtype] == []
