"""What the families around diffusers' UNet share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hcpdiff.diffusion import timesteps
from hcpdiff.diffusion.process import DDPM
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.folder import Part, write
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.text.chunks import Tokens, tokenize
from hcpdiff.models.text.reading import Reading
from hcpdiff.models.weights import on_meta, present, read_json

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


def read(folder: Path, dtype: torch.dtype, *, weights: bool = True) -> Any:
    """The UNet of a `unet/` folder; without `weights`, as the current default device and random state make it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if not weights:
        return UNet2DConditionModel.from_config(read_json(folder / "config.json"))
    if not present(folder):
        raise FileNotFoundError(f"{folder}: no safetensors here; is the model downloaded completely?")
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype)


def skeleton(folder: Path) -> Any:
    """Its layers on the meta device."""
    with on_meta():
        return read(folder, torch.float32, weights=False)


class UNetFamily(PretrainedFamily):
    """A UNet with CLIP text encoders.

    Text encoders and VAE stay in eval mode, so that a caption has one conditioning; whether they learn is the caller's.

    Args:
        text_encoders: by the names of `parts`; `tokenizers` too.
        scheduler: settings of the stock scheduler: the noise schedule, what is predicted, and which steps are visited.
        prediction: None takes the scheduler's.
        zero_terminal_snr: None takes the scheduler's.
        reading: how prompts are read.
    """

    parts: ClassVar[Mapping[str, Part]]
    pipeline: ClassVar[str]
    empty: ClassVar[Sequence[str]] = ()  # what the stock pipeline has and a model can do without

    def __init__(
        self,
        denoiser: nn.Module,
        text_encoders: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        vae: Any,
        *,
        scheduler: Mapping[str, Any] = SCHEDULER,
        prediction: Literal["epsilon", "v_prediction", "sample"] | None = None,
        zero_terminal_snr: bool | None = None,
        reading: Reading = Reading(),  # noqa: B008 (it is frozen)
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.vae = vae
        self.text_encoders = nn.ModuleDict(dict(text_encoders))
        self.tokenizers = dict(tokenizers)
        self.reading = reading
        changes = {"prediction_type": prediction, "rescale_betas_zero_snr": zero_terminal_snr}
        self.scheduler = {**scheduler, **{key: value for key, value in changes.items() if value is not None}}
        self.process = process_of(self.scheduler)
        self.latent = self._latent_spec(denoiser, vae)
        self.eval()

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        """Settings of the stock pipeline itself."""
        return {}

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        spacing = self.scheduler.get("timestep_spacing", "leading")
        return partial(timesteps.ddpm, spacing=spacing, offset=self.scheduler.get("steps_offset", 1))

    def latent_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled for the denoiser; see `encode_image` for a sample."""
        return autoencoder.latent_distribution(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        return autoencoder.decode(self.vae, latents)

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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a complete folder that `from_pretrained` and the stock pipeline read."""
        models: dict[str, Any] = {"unet": self.denoiser, "vae": self.vae, "scheduler": self.scheduler}
        for name, encoder in self.text_encoders.items():
            part = self.parts[f"text_encoders.{name}"]
            models |= {part.folder: encoder, str(part.tokenizer): self.tokenizers[name]}
        write(Path(folder), self.pipeline, models, empty=self.empty, settings=self.pipeline_settings)

    def train(self, mode: bool = True) -> UNetFamily:
        if mode:
            self.reading.check_training()
        super().train(mode)
        self.text_encoders.eval()
        self.vae.eval()
        return self

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tokens]:
        """What each text encoder reads."""
        tokenizers = {name: (tokenizer, tokenizer.model_max_length) for name, tokenizer in self.tokenizers.items()}
        tokens = tokenize(tokenizers, prompts, self.reading)
        devices = {name: next(encoder.parameters()).device for name, encoder in self.text_encoders.items()}
        return {name: tokens[name].to(device) for name, device in devices.items()}

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        return LatentSpec(denoiser.config.in_channels, cell, cell * 2 ** (len(denoiser.config.block_out_channels) - 1))


def process_of(scheduler: Mapping[str, Any]) -> DDPM:
    """The diffusion process that a stock scheduler's settings describe."""
    schedule = scheduler.get("beta_schedule", "scaled_linear")
    betas = {key: scheduler[key] for key in ("beta_start", "beta_end") if key in scheduler}
    return DDPM(
        scheduler.get("prediction_type", "epsilon"),
        schedule="squaredcos" if schedule == "squaredcos_cap_v2" else schedule,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
        **({} if schedule == "squaredcos_cap_v2" else betas),
    )
