"""PixArt-Sigma: a transformer that reads a T5's tokens by cross-attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from hcpdiff.config.ranges import at_least_1
from hcpdiff.models import schedulers
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.folder import Part
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.stock import Stock, checkpoint_blocks
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text import t5 as t5_encoder
from hcpdiff.models.text.reading import Reading
from hcpdiff.types import Conditioning

SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}

_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class PixArtSigma(PretrainedFamily):
    """PixArt-Sigma (arXiv:2403.04692). It was trained on prompts in small letters, so all are made small.

    Args:
        args: those of `PretrainedFamily`: denoiser, text encoders ("t5"), tokenizers, VAE.
        t5_tokens: how many tokens the T5 gives; those that only fill up are hidden from the denoiser.
        scheduler: settings of the stock scheduler: the noise schedule, and which steps are visited.
    """

    architecture = "pixart"
    default_guidance = 4.5
    pipeline = "PixArtSigmaPipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("transformer", Stock("PixArtTransformer2DModel", "transformers.pixart_transformer_2d")),
        "text_encoders.t5": Part("text_encoder", t5_encoder.KIND, tokenizer="tokenizer"),
        "vae": Part("vae", autoencoder.KIND),
    }
    stock_scheduler = SCHEDULER
    denoiser: Any
    t5_tokens: int

    def __init__(
        self, *args: Any, t5_tokens: int = 300, scheduler: Mapping[str, Any] = SCHEDULER, **kwargs: Any
    ) -> None:
        process = schedulers.ddpm({**SCHEDULER, **scheduler})
        super().__init__(*args, process=process, scheduler=scheduler, t5_tokens=t5_tokens, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype | None = "float32",
        text_dtype: str | torch.dtype | None = None,
        vae_dtype: str | torch.dtype | None = "float32",
        t5_tokens: Annotated[int, at_least_1] = 300,
        emphasis: Literal["none", "webui", "braces"] = "none",
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> PixArtSigma:
        """Read a folder of diffusers' PixArtSigmaPipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, or owner/name.
            revision: of the repository.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            vae_dtype: the VAE is that of SDXL, which overflows in float16.
            t5_tokens: how many tokens the T5 gives.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky]`, or "braces", `{red:1.3}`. "none"
                takes every sign as text: tags are full of brackets.
            from_scratch: parts that start from random weights; of these only configs need to be there.
            seed: of these random weights.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            ValueError: a setting is wrong, or weights do not fit their config.
        """
        files = cls._files(path, revision=revision)
        parts = cls._read(
            files, dtype=dtype, text_dtype=text_dtype, vae_dtype=vae_dtype, from_scratch=from_scratch, seed=seed
        )
        return cls(**parts, t5_tokens=t5_tokens, reading=Reading(emphasis))

    @classmethod
    def _told(cls, prompts: Sequence[str], tokenizer: Any, reading: Reading) -> list[str]:
        """In small letters; the sign BREAK, if it is one, is a space to a T5."""
        spaced = prompts if reading.emphasis == "none" else [_BREAK.sub(" ", prompt) for prompt in prompts]
        return [prompt.lower().strip() for prompt in spaced]

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return schedulers.ddpm_spacing({**SCHEDULER, **self.scheduler})

    @property
    def text_settings(self) -> str:
        return f"t5_tokens={self.t5_tokens} {self.reading}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """The T5's tokens; the mask hides those that fill up."""
        read = self._tokens(self._told(prompts, self.tokenizers["t5"], self.reading))["t5"]
        ids = read.ids[:, 0]
        ends = (ids == self.tokenizers["t5"]("").input_ids[-1]).long()
        mask = (ends.cumsum(-1) == ends).to(torch.float32)  # up to the first end
        tokens = self.text_encoders["t5"](ids, attention_mask=mask).last_hidden_state
        return Conditioning(chunked.weighted(tokens, read.weights), mask)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted noise, in the dtype of `noisy_latents`. The variance that the model also predicts is left."""
        dtype = self.denoiser.dtype
        pred = self.denoiser(
            noisy_latents.to(dtype),
            encoder_hidden_states=conditioning.tokens.to(dtype),
            encoder_attention_mask=conditioning.mask,
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return pred[:, : noisy_latents.shape[1]].to(noisy_latents.dtype)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `stock.checkpoint_blocks`."""
        checkpoint_blocks(self.denoiser, self.denoiser.transformer_blocks, mode)

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        return LatentSpec(denoiser.config.in_channels, cell, cell * denoiser.config.patch_size)
