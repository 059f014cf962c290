"""From noise to clean latents: one function per sampler, all with the same arguments (see `euler`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.diffusion.samplers.multistep import dpmpp_2m as dpmpp_2m
    from hcpdiff.diffusion.samplers.multistep import dpmpp_2m_sde as dpmpp_2m_sde
    from hcpdiff.diffusion.samplers.multistep import dpmpp_3m_sde as dpmpp_3m_sde
    from hcpdiff.diffusion.samplers.multistep import lms as lms
    from hcpdiff.diffusion.samplers.predictor_corrector import unipc as unipc
    from hcpdiff.diffusion.samplers.single_step import ddim as ddim
    from hcpdiff.diffusion.samplers.single_step import euler as euler
    from hcpdiff.diffusion.samplers.single_step import euler_ancestral as euler_ancestral
    from hcpdiff.diffusion.samplers.single_step import heun as heun
    from hcpdiff.diffusion.samplers.single_step import lcm as lcm

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "ddim": "hcpdiff.diffusion.samplers.single_step:ddim",
        "dpmpp_2m": "hcpdiff.diffusion.samplers.multistep:dpmpp_2m",
        "dpmpp_2m_sde": "hcpdiff.diffusion.samplers.multistep:dpmpp_2m_sde",
        "dpmpp_3m_sde": "hcpdiff.diffusion.samplers.multistep:dpmpp_3m_sde",
        "euler": "hcpdiff.diffusion.samplers.single_step:euler",
        "euler_ancestral": "hcpdiff.diffusion.samplers.single_step:euler_ancestral",
        "heun": "hcpdiff.diffusion.samplers.single_step:heun",
        "lcm": "hcpdiff.diffusion.samplers.single_step:lcm",
        "lms": "hcpdiff.diffusion.samplers.multistep:lms",
        "unipc": "hcpdiff.diffusion.samplers.predictor_corrector:unipc",
    },
)
