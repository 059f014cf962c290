"""Stable Diffusion XL: a UNet, two CLIP text encoders, and what it is told of the image's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from hcpdiff.types import Conditioning, SizeInfo


class SDXL(UNetFamily):
    """Stable Diffusion XL and what was made of it (arXiv:2307.01952).

    Args:
        clip_skip: how many of the last layers of both CLIPs are left out; XL was trained with 1. None is normalised.
        empty_prompt: "encode" it as any other text, or "zeros".
    """

    architecture = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("unet", UNET),
        "text_encoders.clip_l": Part("text_encoder", clip.KIND, tokenizer="tokenizer"),
        "text_encoders.clip_g": Part("text_encoder_2", clip.KIND, tokenizer="tokenizer_2"),
        "vae": Part("vae", autoencoder.KIND),
    }
    empty = ("feature_extractor", "image_encoder")

    def __init__(
        self, *args: Any, clip_skip: int = 1, empty_prompt: Literal["encode", "zeros"] = "encode", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if empty_prompt not in ("encode", "zeros"):
            raise ValueError(f"empty_prompt: {empty_prompt!r} is unknown; use 'encode' or 'zeros'")
        self.clip_skip, self.empty_prompt = clip_skip, empty_prompt
        for encoder in self.text_encoders.values():
            clip.check_skip(encoder, clip_skip)

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
        clip_skip: int = 1,
        empty_prompt: Literal["encode", "zeros"] | None = None,
        emphasis: Literal["none", "webui", "braces"] = "none",
        chunks: Annotated[int, at_least_1] | Literal["auto"] = 1,
        chunk_pooling: Literal["first", "mean"] = "first",
        prediction: Literal["epsilon", "v_prediction", "sample"] | None = None,
        zero_terminal_snr: bool | None = None,
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> SDXL:
        """Read a folder of diffusers' StableDiffusionXLPipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, owner/name, or a single .safetensors or .ckpt file.
            revision: of the repository.
            configs: of a single file: a folder, or owner/name, whose configs and tokenizers go with it; None takes the
                folder beside the file that is named like it.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            vae_dtype: the original VAE overflows in float16.
            clip_skip: how many of the last layers of both CLIPs are left out.
            empty_prompt: how an empty prompt is told: "encode" it as any other text, or "zeros". None takes what the
                folder says, which diffusers heeds where no negative prompt is given; the official one says zeros.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky] BREAK`, or "braces", `{red:1.3}`.
                "none" takes every sign as text: tags are full of brackets.
            chunks: how many times 75 tokens of a prompt are read; "auto" as many as the longest of a batch needs, for
                inference alone.
            chunk_pooling: the pooled vector is that of the "first" chunk, or the "mean" of those that have text.
            prediction: what the UNet predicts; None takes what the folder's scheduler says.
            zero_terminal_snr: whether the last timestep is pure noise; None takes what the scheduler says.
            from_scratch: parts that start from random weights; of these only configs need to be there.
            seed: of these random weights.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            ValueError: a setting is wrong, or weights do not fit their config.
        """
        files = cls._files(path, revision=revision, configs=configs)
        parts = cls._read(
            files, dtype=dtype, text_dtype=text_dtype, vae_dtype=vae_dtype, from_scratch=from_scratch, seed=seed
        )
        if empty_prompt is None:
            empty_prompt = "zeros" if files.index.get("force_zeros_for_empty_prompt", True) else "encode"
        return cls(
            **parts,
            prediction=prediction,
            zero_terminal_snr=zero_terminal_snr,
            clip_skip=clip_skip,
            empty_prompt=empty_prompt,
            reading=Reading(emphasis, chunks, chunk_pooling),
        )

    @property
    def pipeline_settings(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.empty_prompt == "zeros"}

    @property
    def text_settings(self) -> str:
        return f"clip_skip={self.clip_skip} empty_prompt={self.empty_prompt} {self.reading}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """The token features of both CLIPs beside each other, and the pooled feature of the second."""
        read = self._tokens(prompts)
        both = [
            chunked.encode(read[name], partial(clip.encode, encoder, skip=self.clip_skip), pooling=self.reading.pooling)
            for name, encoder in self.text_encoders.items()
        ]
        tokens, pooled = torch.cat([features for features, _ in both], dim=-1), both[-1][1]
        if self.empty_prompt == "zeros":
            kept = torch.tensor([prompt != "" for prompt in prompts], device=tokens.device)
            tokens, pooled = tokens * kept[:, None, None], pooled * kept[:, None]
        return Conditioning(tokens, pooled=pooled)

    def with_size(self, conditioning: Conditioning, sizes: Sequence[SizeInfo]) -> Conditioning:
        """Add `time_ids`, (B, 6): the original's height and width, top and left of the crop, the target's sides."""
        rows = [[*size.original, *size.crop, *size.target] for size in sizes]
        time_ids = torch.tensor(rows, dtype=torch.float32, device=conditioning.tokens.device)
        return replace(conditioning, extras={**conditioning.extras, "time_ids": time_ids})

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the UNet predicts, in the dtype of `noisy_latents`."""
        if conditioning.pooled is None or "time_ids" not in conditioning.extras:
            raise ValueError("SDXL.denoise: the conditioning has no size; make it with encode_prompt and with_size")
        dtype = next(self.denoiser.parameters()).dtype
        added = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": conditioning.extras["time_ids"]}
        pred = self.denoiser(
            noisy_latents.to(dtype),
            timesteps,
            conditioning.tokens.to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return pred.to(noisy_latents.dtype)
