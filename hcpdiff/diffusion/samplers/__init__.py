"""From noise to clean latents: one function per sampler, all with the same arguments (see `euler`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.diffusion.samplers.loop import Callback, Generators, Predict
    from hcpdiff.diffusion.samplers.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, lms
    from hcpdiff.diffusion.samplers.predictor_corrector import unipc
    from hcpdiff.diffusion.samplers.single_step import ddim, euler, euler_ancestral, heun, lcm

_HERE = "hcpdiff.diffusion.samplers"
__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        **{name: f"{_HERE}.single_step:{name}" for name in ("euler", "euler_ancestral", "ddim", "lcm", "heun")},
        **{name: f"{_HERE}.multistep:{name}" for name in ("lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")},
        "unipc": f"{_HERE}.predictor_corrector:unipc",
        **{name: f"{_HERE}.loop:{name}" for name in ("Callback", "Generators", "Predict")},
    },
)
