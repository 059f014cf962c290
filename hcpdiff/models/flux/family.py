"""FLUX.1 dev and schnell: double and single blocks, a CLIP for the prompt as a whole, a T5 for its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from hcpdiff.config.ranges import at_least_0, at_least_1
from hcpdiff.diffusion.process import FlowMatching
from hcpdiff.models import schedulers
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.flux.transformer import FluxTransformer
from hcpdiff.models.folder import ModelFolder, Part
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text import clip
from hcpdiff.models.text import t5 as t5_encoder
from hcpdiff.models.text.reading import Reading
from hcpdiff.types import Conditioning

SCHEDULER = {  # of dev
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
GUIDANCE = {"embedded_guidance": 3.5, "train_guidance": 1.0}
T5_TOKENS = {True: 512, False: 256}  # with guidance (dev), without (schnell)

Guidance = Annotated[float, at_least_0]


class Flux(PretrainedFamily):
    """FLUX.1 dev and schnell.

    dev is told a guidance scale and imitates guidance at it in one pass: `embedded_guidance` where pictures are made,
    so in eval mode, and `train_guidance` in training mode. It is not the `guidance` of inference, which works beside
    it, runs the model twice and is usually 1. schnell is told nothing and needs few steps.

    Args:
        args: those of `PretrainedFamily`: denoiser, text encoders ("clip_l" and "t5"), tokenizers, VAE.
        t5_tokens: how many tokens the T5 gives; None: 512 for dev, 256 for schnell.
        scheduler: settings of the stock scheduler: whether the default steps of sampling depend on the size.
        reading: chunks are those of CLIP, which gives the mean of its vectors; the T5 reads its tokens at once.
    """

    architecture = "flux"
    default_guidance = 1.0
    pipeline = "FluxPipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("transformer", FluxTransformer),
        "text_encoders.clip_l": Part("text_encoder", clip.KIND, tokenizer="tokenizer"),
        "text_encoders.t5": Part("text_encoder_2", t5_encoder.KIND, tokenizer="tokenizer_2"),
        "vae": Part("vae", autoencoder.KIND),
    }
    empty = ("image_encoder", "feature_extractor")
    stock_scheduler = SCHEDULER
    denoiser: FluxTransformer

    def __init__(
        self,
        denoiser: FluxTransformer,
        *args: Any,
        t5_tokens: int | None = None,
        embedded_guidance: float = GUIDANCE["embedded_guidance"],
        train_guidance: float = GUIDANCE["train_guidance"],
        scheduler: Mapping[str, Any] = SCHEDULER,
        **kwargs: Any,
    ) -> None:
        for key, value in {"embedded_guidance": embedded_guidance, "train_guidance": train_guidance}.items():
            if value < 0:
                raise ValueError(f"{key}: {value} is no guidance scale; use 0 or more, usually {GUIDANCE[key]}")
            if value != GUIDANCE[key] and not denoiser.config.guidance_embeds:
                raise ValueError(f"{key}: this model, like schnell, is told no guidance scale; leave it out")
        if t5_tokens is None:
            t5_tokens = T5_TOKENS[denoiser.config.guidance_embeds]
        process = FlowMatching()
        super().__init__(denoiser, *args, process=process, scheduler=scheduler, t5_tokens=t5_tokens, **kwargs)
        self.embedded_guidance, self.train_guidance = embedded_guidance, train_guidance

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
        t5_tokens: Annotated[int, at_least_1] | None = None,
        embedded_guidance: Guidance = GUIDANCE["embedded_guidance"],
        train_guidance: Guidance = GUIDANCE["train_guidance"],
        emphasis: Literal["none", "webui", "braces"] = "none",
        chunks: Annotated[int, at_least_1] | Literal["auto"] = 1,
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> Flux:
        """Read a folder of diffusers' FluxPipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, owner/name, or a single .safetensors or .ckpt file.
            revision: of the repository.
            configs: of a single file: a folder, or owner/name, whose configs and tokenizers go with it; None takes the
                folder beside the file that is named like it.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            t5_tokens: how many tokens the T5 gives; None: 512 for dev, 256 for schnell.
            embedded_guidance: the guidance scale that dev is told where it makes pictures. schnell is told none.
            train_guidance: the one that it is told in training. 1 is no guidance, and so are pictures as they are; at a
                higher one the model learns to give them where it gave guided ones, and loses its guidance.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky] BREAK`, or "braces", `{red:1.3}`.
                "none" takes every sign as text: tags are full of brackets. The weights act on the T5's tokens.
            chunks: how many times 75 tokens of a prompt CLIP reads, for one vector, their mean; "auto" as many as the
                longest of a batch needs, for inference alone. The T5 reads `t5_tokens`, and BREAK is a space to it.
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
        return cls(
            **parts,
            t5_tokens=t5_tokens,
            embedded_guidance=embedded_guidance,
            train_guidance=train_guidance,
            reading=Reading(emphasis, chunks, "mean"),
        )

    @classmethod
    def _limit(cls, name: str, files: ModelFolder, given: Mapping[str, Any]) -> int | None:
        if name != "t5" or given["t5_tokens"] is not None:
            return super()._limit(name, files, given)
        denoiser: Any = files.skeleton("denoiser")
        return T5_TOKENS[denoiser.config.guidance_embeds]

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return schedulers.flow_spacing(self.scheduler, self.latent.multiple_of)

    @property
    def text_settings(self) -> str:
        return f"t5_tokens={self.t5_tokens} {self.reading}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """The T5's tokens, and the pooled feature of CLIP."""
        read = self._tokens(prompts)
        encoder = partial(clip.encode, self.text_encoders["clip_l"])
        _, pooled = chunked.encode(read["clip_l"], encoder, pooling=self.reading.pooling)
        tokens = t5_encoder.encode(self.text_encoders["t5"], read["t5"].ids[:, 0])
        return Conditioning(chunked.weighted(tokens, read["t5"].weights), pooled=pooled)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted flow, noise - latents, in the dtype of `noisy_latents`."""
        dtype, pooled, guidance = self.denoiser.dtype, conditioning.pooled, None
        if pooled is None:
            raise ValueError("Flux.denoise: the conditioning has no pooled vector; make it with Flux.encode_prompt")
        if self.denoiser.config.guidance_embeds:
            scale = self.train_guidance if self.training else self.embedded_guidance
            guidance = timesteps.new_full(timesteps.shape, scale, dtype=torch.float32)
        flow = self.denoiser(
            noisy_latents.to(dtype),
            timesteps,
            conditioning.tokens.to(dtype),
            pooled.to(dtype),
            guidance,
            conditioning.mask,
        )
        return flow.to(noisy_latents.dtype)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `FluxTransformer.gradient_checkpointing`."""
        self.denoiser.gradient_checkpointing(mode)

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        return LatentSpec(denoiser.config.in_channels // 4, cell, 2 * cell)
