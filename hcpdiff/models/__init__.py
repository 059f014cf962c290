"""Base models: each family is a denoiser, its text encoders and its VAE behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.models.family import LatentSpec as LatentSpec
    from hcpdiff.models.family import ModelFamily as ModelFamily
    from hcpdiff.models.flux.family import Flux as Flux
    from hcpdiff.models.flux.transformer import FluxConfig as FluxConfig
    from hcpdiff.models.flux.transformer import FluxTransformer as FluxTransformer
    from hcpdiff.models.opening import convert_model as convert_model
    from hcpdiff.models.opening import open_model as open_model
    from hcpdiff.models.pixart import PixArtSigma as PixArtSigma
    from hcpdiff.models.qwen_image import QwenImage as QwenImage
    from hcpdiff.models.sd import StableDiffusion as StableDiffusion
    from hcpdiff.models.sd3.family import SD3 as SD3
    from hcpdiff.models.sd3.transformer import MMDiT as MMDiT
    from hcpdiff.models.sd3.transformer import MMDiTConfig as MMDiTConfig
    from hcpdiff.models.sdxl import SDXL as SDXL
    from hcpdiff.models.zimage import ZImage as ZImage

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "Flux": "hcpdiff.models.flux.family:Flux",
        "FluxConfig": "hcpdiff.models.flux.transformer:FluxConfig",
        "FluxTransformer": "hcpdiff.models.flux.transformer:FluxTransformer",
        "LatentSpec": "hcpdiff.models.family:LatentSpec",
        "MMDiT": "hcpdiff.models.sd3.transformer:MMDiT",
        "MMDiTConfig": "hcpdiff.models.sd3.transformer:MMDiTConfig",
        "ModelFamily": "hcpdiff.models.family:ModelFamily",
        "PixArtSigma": "hcpdiff.models.pixart:PixArtSigma",
        "QwenImage": "hcpdiff.models.qwen_image:QwenImage",
        "SD3": "hcpdiff.models.sd3.family:SD3",
        "SDXL": "hcpdiff.models.sdxl:SDXL",
        "StableDiffusion": "hcpdiff.models.sd:StableDiffusion",
        "ZImage": "hcpdiff.models.zimage:ZImage",
        "convert_model": "hcpdiff.models.opening:convert_model",
        "open_model": "hcpdiff.models.opening:open_model",
    },
)
