"""Stock pipelines of every family, tiny, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hcpdiff.models.flux.family import Flux
from hcpdiff.models.pixart import PixArtSigma
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from hcpdiff.models.sdxl import SDXL
from hcpdiff.models.zimage import ZImage
from tests.models.tiny import tiny_pipeline
from tests.models.tiny_flux import tiny_flux_pipeline
from tests.models.tiny_pixart import tiny_pixart
from tests.models.tiny_unet import tiny_sd, tiny_sdxl
from tests.models.tiny_zimage import tiny_zimage

FAMILIES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "sd": (StableDiffusion, tiny_sd),
    "sdxl": (SDXL, tiny_sdxl),
    "sd3": (SD3, lambda: tiny_pipeline(t5=True)),
    "flux": (Flux, tiny_flux_pipeline),
    "pixart": (PixArtSigma, tiny_pixart),
    "zimage": (ZImage, tiny_zimage),
}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All of them, also those that no file holds, by every name that they have."""
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(own)
