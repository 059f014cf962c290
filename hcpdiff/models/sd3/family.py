"""Stable Diffusion 3 and 3.5: an MMDiT, two CLIP text encoders and, optionally, a T5."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hcpdiff.config.ranges import at_least_1
from hcpdiff.diffusion import timesteps
from hcpdiff.diffusion.process import FlowMatching
from hcpdiff.models import vae as autoencoder
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.folder import ModelFolder, Part
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.sd3.transformer import MMDiT
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text import clip
from hcpdiff.models.text import t5 as t5_encoder
from hcpdiff.models.text.reading import Reading
from hcpdiff.types import Conditioning

T5 = "text_encoders.t5"
CLIPS = ("clip_l", "clip_g")
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


class SD3(PretrainedFamily):
    """SD3 medium, SD3.5 medium and SD3.5 large (arXiv:2403.03206).

    Args:
        args: those of `PretrainedFamily`: denoiser, text encoders ("clip_l", "clip_g", perhaps "t5"), tokenizers, VAE.
        t5_tokens: how many tokens the T5 gives. Without a T5 the model is shown as many zeros.
        compact_t5: give those zeros as one token that counts for all: the same result, and faster.
        scheduler: settings of the stock scheduler; `shift` sets the default steps of sampling.
        reading: chunks are those of CLIP, the T5 reads its tokens at once.
    """

    architecture = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("transformer", MMDiT),
        "text_encoders.clip_l": Part("text_encoder", clip.KIND, tokenizer="tokenizer"),
        "text_encoders.clip_g": Part("text_encoder_2", clip.KIND, tokenizer="tokenizer_2"),
        T5: Part("text_encoder_3", t5_encoder.KIND, tokenizer="tokenizer_3"),
        "vae": Part("vae", autoencoder.KIND),
    }
    empty = ("image_encoder", "feature_extractor")
    stock_scheduler = SCHEDULER
    denoiser: MMDiT
    t5_tokens: int

    def __init__(
        self,
        *args: Any,
        t5_tokens: int = 256,
        compact_t5: bool = True,
        scheduler: Mapping[str, Any] = SCHEDULER,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, process=FlowMatching(), scheduler=scheduler, t5_tokens=t5_tokens, **kwargs)
        self.compact_t5 = compact_t5

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
        t5: bool = True,
        t5_tokens: Annotated[int, at_least_1] = 256,
        compact_t5: bool = True,
        emphasis: Literal["none", "webui", "braces"] = "none",
        chunks: Annotated[int, at_least_1] | Literal["auto"] = 1,
        chunk_pooling: Literal["first", "mean"] = "first",
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> SD3:
        """Read a folder of diffusers' StableDiffusion3Pipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, owner/name, or a single .safetensors or .ckpt file.
            revision: of the repository.
            configs: of a single file: a folder, or owner/name, whose configs and tokenizers go with it; None takes the
                folder beside the file that is named like it.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            t5: read the T5 if the model has one. False saves most of the memory and costs fidelity to long prompts.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky] BREAK`, or "braces", `{red:1.3}`.
                "none" takes every sign as text: tags are full of brackets.
            chunks: how many times 75 tokens of a prompt CLIP reads; "auto" as many as the longest of a batch needs, for
                inference alone. The T5 reads `t5_tokens`, and BREAK is a space to it.
            chunk_pooling: the pooled vector is that of the "first" chunk, or the "mean" of those that have text.
            from_scratch: parts that start from random weights; of these only configs need to be there.
            seed: of these random weights.

        Raises:
            FileNotFoundError: there is no such folder or repository, or a file is missing.
            ValueError: a setting is wrong, or weights do not fit their config.
        """
        files = cls._files(path, revision=revision, configs=configs, t5=t5)
        parts = cls._read(
            files, dtype=dtype, text_dtype=text_dtype, vae_dtype=vae_dtype, from_scratch=from_scratch, seed=seed
        )
        return cls(
            **parts,
            t5_tokens=t5_tokens,
            compact_t5=compact_t5,
            reading=Reading(emphasis, chunks, chunk_pooling),
        )

    @classmethod
    def _files(cls, path: str | Path, *, skip: Collection[str] = (), t5: bool = True, **options: Any) -> ModelFolder:
        files = super()._files(path, skip=skip if t5 else (*skip, T5), **options)
        if t5 and (not files.folder(T5).is_dir() or t5_encoder.is_silent(files.folder(T5))):
            del files.parts[T5]
        return files

    def _written(self) -> dict[str, Any]:
        """The stock pipeline insists on a T5, so a silent one stands in for a missing one."""
        models = super()._written()
        if "t5" not in self.text_encoders:
            part = self.parts[T5]
            width = self.denoiser.config.joint_attention_dim
            models[part.folder], models[str(part.tokenizer)] = t5_encoder.silent(width, self.denoiser.dtype)
        return models

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return partial(timesteps.flow, shift=self.scheduler.get("shift", 1.0))

    @property
    def text_settings(self) -> str:
        return f"{list(self.text_encoders)} t5_tokens={self.t5_tokens} compact={self.compact_t5} {self.reading}"

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """CLIP tokens beside each other, padded to the T5's width, then the T5's tokens; pooled CLIP features."""
        read = self._tokens(prompts)
        features = [
            chunked.encode(read[n], partial(clip.encode, self.text_encoders[n]), pooling=self.reading.pooling)
            for n in CLIPS
        ]
        tokens = torch.cat([tokens for tokens, _ in features], dim=-1)
        pooled = torch.cat([pooled for _, pooled in features], dim=-1)
        tokens = F.pad(tokens, (0, self.denoiser.config.joint_attention_dim - tokens.shape[-1]))
        if "t5" in self.text_encoders:
            long = t5_encoder.encode(self.text_encoders["t5"], read["t5"].ids[:, 0])
            long = chunked.weighted(long, read["t5"].weights)
            return Conditioning(torch.cat([tokens, long.to(tokens.dtype)], dim=1), pooled=pooled)
        if not self.compact_t5:
            return Conditioning(F.pad(tokens, (0, 0, 0, self.t5_tokens)), pooled=pooled)
        mask = F.pad(tokens.new_ones(tokens.shape[:2], dtype=torch.float32), (0, 1), value=self.t5_tokens)
        return Conditioning(F.pad(tokens, (0, 0, 0, 1)), mask, pooled)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted flow, noise - latents, in the dtype of `noisy_latents`."""
        dtype, tokens, pooled = self.denoiser.dtype, conditioning.tokens, conditioning.pooled
        if pooled is None:
            raise ValueError("SD3.denoise: the conditioning has no pooled vector; make it with SD3.encode_prompt")
        flow = self.denoiser(noisy_latents.to(dtype), timesteps, tokens.to(dtype), pooled.to(dtype), conditioning.mask)
        return flow.to(noisy_latents.dtype)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `MMDiT.gradient_checkpointing`."""
        self.denoiser.gradient_checkpointing(mode)

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = autoencoder.downscale(vae)
        patch = cell * denoiser.config.patch_size
        return LatentSpec(denoiser.config.in_channels, cell, patch, denoiser.config.pos_embed_max_size * patch)
