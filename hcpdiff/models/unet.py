"""What the families around diffusers' UNet share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from hcpdiff.models import schedulers
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.stock import Stock

# Of the first Stable Diffusion, for folders that have no scheduler of their own.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}

UNET = Stock("UNet2DConditionModel", "unets.unet_2d_condition")


class UNetFamily(PretrainedFamily):
    """A UNet with CLIP text encoders.

    Args:
        args: those of `PretrainedFamily`: denoiser, text encoders, tokenizers, VAE.
        scheduler: settings of the stock scheduler: the noise schedule, what is predicted, and which steps are visited.
        prediction: None takes the scheduler's.
        zero_terminal_snr: None takes the scheduler's.
    """

    stock_scheduler = SCHEDULER

    def __init__(
        self,
        *args: Any,
        scheduler: Mapping[str, Any] = SCHEDULER,
        prediction: Literal["epsilon", "v_prediction", "sample"] | None = None,
        zero_terminal_snr: bool | None = None,
        **kwargs: Any,
    ) -> None:
        changes = {"prediction_type": prediction, "rescale_betas_zero_snr": zero_terminal_snr}
        settings = {**scheduler, **{key: value for key, value in changes.items() if value is not None}}
        super().__init__(*args, process=schedulers.ddpm(settings), scheduler=settings, **kwargs)

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return schedulers.ddpm_spacing(self.scheduler)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """Of all resolutions' blocks, or every n-th of them.

        Raises:
            ValueError: "mlp", which a UNet of diffusers cannot do alone.
        """
        unet: Any = self.denoiser
        if mode == "mlp":
            raise ValueError("gradient_checkpointing: a UNet cannot compute its MLPs alone again; use 'all' or 2")
        unet.disable_gradient_checkpointing()
        if mode == "none":
            return
        every = 1 if mode == "all" else int(mode)
        unet.enable_gradient_checkpointing()
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        for i, block in enumerate(block for block in blocks if hasattr(block, "gradient_checkpointing")):
            for module in block.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = i % every == 0

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        return LatentSpec(denoiser.config.in_channels, cell, cell * 2 ** (len(denoiser.config.block_out_channels) - 1))
