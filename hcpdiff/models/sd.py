"""Stable Diffusion 1.x and 2.x: a UNet and one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from hcpdiff.config.ranges import at_least_1
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.folder import Part
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text import clip
from hcpdiff.models.text.reading import Reading
from hcpdiff.models.unet import UNET, UNetFamily
from hcpdiff.types import Conditioning


class StableDiffusion(UNetFamily):
    """Stable Diffusion 1.x, 2.x and what was made of them (arXiv:2112.10752).

    Args:
        clip_skip: how many of the last layers of CLIP are left out. The rest is normalised as the last one is.
    """

    architecture = "sd"
    pipeline = "StableDiffusionPipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("unet", UNET),
        "text_encoders.clip": Part("text_encoder", clip.KIND, tokenizer="tokenizer"),
        "vae": Part("vae", autoencoder.KIND),
    }
    empty = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(self, *args: Any, clip_skip: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clip_skip = clip_skip
        clip.check_skip(self.text_encoders["clip"], clip_skip)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        configs: str | Path | None = None,
        dtype: str | torch.dtype | None = "float32",
        text_dtype: str | torch.dtype | None = None,
        vae_dtype: str | torch.dtype | None = "float32",
        clip_skip: int = 0,
        emphasis: Literal["none", "webui", "braces"] = "none",
        chunks: Annotated[int, at_least_1] | Literal["auto"] = 1,
        prediction: Literal["epsilon", "v_prediction", "sample"] | None = None,
        zero_terminal_snr: bool | None = None,
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> StableDiffusion:
        """Read a folder of diffusers' StableDiffusionPipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, owner/name, or a single .safetensors or .ckpt file.
            revision: of the repository.
            configs: of a single file: a folder, or owner/name, whose configs and tokenizers go with it; None takes the
                folder beside the file that is named like it.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            clip_skip: how many of the last layers of CLIP are left out; anime models often were trained with 1.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky] BREAK`, or "braces", `{red:1.3}`.
                "none" takes every sign as text: tags are full of brackets.
            chunks: how many times 75 tokens of a prompt are read; "auto" as many as the longest of a batch needs, for
                inference alone.
            prediction: what the UNet predicts; None takes what the folder's scheduler says, and for a single file of
                Stable Diffusion 2, which does not say it, v_prediction.
            zero_terminal_snr: whether the last timestep is pure noise; None takes what the scheduler says.
            from_scratch: parts that start from random weights; of these only configs need to be there.
            seed: of these random weights.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            ValueError: a setting is wrong, or weights do not fit their config.
        """
        files = cls._files(path, revision=revision, configs=configs)
        if prediction is None:
            files.check_prediction()
        parts = cls._read(
            files, dtype=dtype, text_dtype=text_dtype, vae_dtype=vae_dtype, from_scratch=from_scratch, seed=seed
        )
        return cls(
            **parts,
            prediction=prediction,
            zero_terminal_snr=zero_terminal_snr,
            clip_skip=clip_skip,
            reading=Reading(emphasis, chunks),
        )

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        return {"requires_safety_checker": False}

    @property
    def text_settings(self) -> str:
        return f"clip_skip={self.clip_skip} {self.reading}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """The token features of CLIP, normalised, of one chunk after the other."""
        encoder = partial(clip.encode, self.text_encoders["clip"], skip=self.clip_skip, normalised=True)
        features, _ = chunked.encode(self._tokens(prompts)["clip"], encoder)
        return Conditioning(features)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the UNet predicts, in the dtype of `noisy_latents`."""
        dtype = next(self.denoiser.parameters()).dtype
        pred = self.denoiser(noisy_latents.to(dtype), timesteps, conditioning.tokens.to(dtype), return_dict=False)[0]
        return pred.to(noisy_latents.dtype)
