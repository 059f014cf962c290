"""Qwen-Image: two streams of image and text tokens, a large language model that reads the prompt, and a video VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hcpdiff.config.ranges import at_least_1
from hcpdiff.diffusion.guidance import norm_kept
from hcpdiff.models import schedulers
from hcpdiff.models.family import LatentSpec
from hcpdiff.models.folder import Part
from hcpdiff.models.language import LanguageFamily
from hcpdiff.models.stock import Stock, checkpoint_blocks
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text.loading import StockText
from hcpdiff.models.text.reading import Reading
from hcpdiff.types import Conditioning

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
UNSEEN = 34  # tokens of BEFORE, which the denoiser does not get
PATCH = 2  # latent cells per token, per side


class QwenImage(LanguageFamily):
    """Qwen-Image (arXiv:2508.02324).

    Args:
        args: those of `LanguageFamily`.
    """

    architecture = "qwen_image"
    default_guidance = 4.0
    combine = staticmethod(norm_kept)
    unseen = UNSEEN
    pipeline = "QwenImagePipeline"
    parts: ClassVar[Mapping[str, Part]] = {
        "denoiser": Part("transformer", Stock("QwenImageTransformer2DModel", "transformers.transformer_qwenimage")),
        "text_encoders.qwen": Part(
            "text_encoder", StockText("Qwen2_5_VLForConditionalGeneration"), tokenizer="tokenizer"
        ),
        "vae": Part("vae", Stock("AutoencoderKLQwenImage", "autoencoders.autoencoder_kl_qwenimage")),
    }
    stock_scheduler = SCHEDULER
    denoiser: Any
    vae: Any

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
    ) -> QwenImage:
        """Read a folder of diffusers' QwenImagePipeline, or such a repository of the Hugging Face hub.

        Args:
            path: folder, or owner/name.
            revision: of the repository.
            dtype: None leaves each weight as its file has it; `vae_dtype` too.
            text_dtype: None takes `dtype`.
            text_tokens: how many tokens the denoiser gets, those of the chat behind the prompt included.
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
        """As what a user says in a chat about describing images."""
        return [BEFORE + prompt + AFTER for prompt in prompts]

    @property
    def spacing(self) -> Callable[..., Tensor]:
        """The timesteps that sampling visits unless told otherwise: (num_steps, process, size) -> (num_steps,)."""
        return schedulers.flow_spacing(self.scheduler, self.latent.multiple_of)

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """What the language model says of each token of the prompt; the mask hides those that fill up."""
        encoder: Any = self.text_encoders["qwen"]
        ids, mask, weights = self._chat(prompts)
        model = encoder.model  # without the layer that guesses words
        states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        states, mask = states[:, UNSEEN:], mask[:, UNSEEN:]
        states = chunked.weighted(
            states * mask[..., None].to(states.dtype), None if weights is None else weights[:, UNSEEN:]
        )
        return Conditioning(states, mask.to(torch.float32))

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted flow, noise - latents, in the dtype of `noisy_latents`."""
        if conditioning.mask is None:
            raise ValueError("QwenImage.denoise: the conditioning has no mask; make it with QwenImage.encode_prompt")
        dtype, (batch, _, height, width) = self.denoiser.dtype, noisy_latents.shape
        pred = self.denoiser(
            F.pixel_unshuffle(noisy_latents.to(dtype), PATCH).flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.tokens.to(dtype),
            encoder_hidden_states_mask=conditioning.mask.bool(),
            timestep=timesteps / 1000,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * batch,
            return_dict=False,
        )[0]
        pred = pred.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
        return F.pixel_shuffle(pred, PATCH).to(noisy_latents.dtype)

    def latent_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents; an image is a video of one frame."""
        posterior = self.vae.encode(images.to(self.vae.dtype).unsqueeze(2)).latent_dist
        mean, std = self._channels(posterior.mean)
        return ((posterior.mean - mean) / std).squeeze(2), (posterior.std / std).squeeze(2)

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.to(self.vae.dtype).unsqueeze(2)
        mean, std = self._channels(frames)
        return self.vae.decode(frames * std + mean).sample.squeeze(2).clamp(-1, 1)

    def _channels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel of the VAE's latents, (C, 1, 1, 1)."""
        config = self.vae.config
        mean, std = (like.new_tensor(x).view(-1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        return mean, std

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """See `stock.checkpoint_blocks`."""
        checkpoint_blocks(self.denoiser, self.denoiser.transformer_blocks, mode)

    @staticmethod
    def _latent_spec(denoiser: Any, vae: Any) -> LatentSpec:
        cell = 2 ** len(vae.config.temperal_downsample)
        return LatentSpec(denoiser.config.in_channels // PATCH**2, cell, cell * PATCH)
