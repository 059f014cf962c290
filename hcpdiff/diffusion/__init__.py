"""Diffusion processes, noise, timesteps, losses, guidance and samplers; none of them knows a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.diffusion.guidance import guided as guided
    from hcpdiff.diffusion.process import DDPM as DDPM
    from hcpdiff.diffusion.process import FlowMatching as FlowMatching
    from hcpdiff.diffusion.process import Process as Process

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "DDPM": "hcpdiff.diffusion.process:DDPM",
        "FlowMatching": "hcpdiff.diffusion.process:FlowMatching",
        "Process": "hcpdiff.diffusion.process:Process",
        "guided": "hcpdiff.diffusion.guidance:guided",
    },
)
