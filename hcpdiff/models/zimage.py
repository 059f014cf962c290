"""Z-Image and Z-Image-Turbo: one stream of image and text tokens, and a language model that reads the prompt."""

from __future__ import annotations

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
from hcpdiff.models.language import LanguageFamily
from hcpdiff.models.stock import Stock, checkpoint_blocks
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text.loading import StockText
from hcpdiff.models.text.reading import Reading
from hcpdiff.types import Conditioning

SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


class ZImage(LanguageFamily):
    """Z-Image and Z-Image-Turbo (arXiv:2511.22699).

    A guidance scale here is one more than that of the stock pipeline, whose 0 is the 1 of all families: no guidance.

    Args:
        args: those of `LanguageFamily`.
    """

    architecture = "zimage"
    default_guidance = 1.0
    pipeline = "ZImagePipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("transformer", Stock("ZImageTransformer2DModel", "transformers.transformer_z_image")),
        "text_encoders.qwen": Part("text_encoder", StockText("Qwen3Model"), tokenizer="tokenizer"),
        "vae": Part("vae", autoencoder.KIND),
    }
    stock_scheduler = SCHEDULER
    denoiser: Any

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype | None = "float32",
        text_dtype: str | torch.dtype | None = None,
        vae_dtype: str | torch.dtype | None = "float32",
        text_tokens: Annotated[int, at_least_1] = 512,
        emphasis: Literal["none", "webui", "braces"] = "none",
        from_scratch: Sequence[Literal["denoiser", "text_encoders", "vae"]] = (),
        seed: int = 0,
    ) -> ZImage:
        """Read a folder of diffusers' ZImagePipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, or owner/name.
            revision: of the repository.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            text_tokens: how many tokens of a prompt are read, those of the chat around it included.
            emphasis: the signs in prompts that count: "webui", `(red:1.3) [sky]`, or "braces", `{red:1.3}`. "none"
                takes all as text.
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
        return cls(**parts, text_tokens=text_tokens, reading=Reading(emphasis))

    @classmethod
    def _told(cls, prompts: Sequence[str], tokenizer: Any, reading: Reading) -> list[str]:
        """As what a user says in a chat with the language model."""
        chat: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return [tokenizer.apply_chat_template([{"role": "user", "content": text}], **chat) for text in prompts]

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return schedulers.flow_spacing(self.scheduler, self.latent.multiple_of)

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """What the last layer but one of the language model says of each token; the mask hides those that fill up."""
        encoder, (ids, mask, weights) = self.text_encoders["qwen"], self._chat(prompts)
        states = encoder(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states[-2]
        states = chunked.weighted(states * mask[..., None].to(states.dtype), weights)
        return Conditioning(states, mask.to(torch.float32))

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted flow, noise - latents, in the dtype of `noisy_latents`."""
        if conditioning.mask is None:
            raise ValueError("ZImage.denoise: the conditioning has no mask; make it with ZImage.encode_prompt")
        dtype = self.denoiser.dtype
        rows = zip(conditioning.tokens.to(dtype), conditioning.mask.bool(), strict=True)
        images = list(noisy_latents.to(dtype).unsqueeze(2).unbind(0))  # one frame each
        shown = self.denoiser(images, 1 - timesteps / 1000, [row[kept] for row, kept in rows], return_dict=False)[0]
        return -torch.stack(shown).squeeze(2).to(noisy_latents.dtype)

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `stock.checkpoint_blocks`."""
        model = self.denoiser
        checkpoint_blocks(model, [*model.noise_refiner, *model.context_refiner, *model.layers], mode)

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        config, cell = denoiser.config, autoencoder.downscale(vae)
        token = cell * config.all_patch_size[0]
        return LatentSpec(config.in_channels, cell, token, token * min(config.axes_lens[1:]))
