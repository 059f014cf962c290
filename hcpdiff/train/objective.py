"""From a batch to losses. One nn.Module, so that a distributed engine wraps every trainable parameter at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Generator, Tensor, nn

from hcpdiff.diffusion.guidance import guided
from hcpdiff.diffusion.losses import masked, mse
from hcpdiff.diffusion.noise import gaussian
from hcpdiff.diffusion.process import Process
from hcpdiff.diffusion.timesteps import uniform
from hcpdiff.models.family import ModelFamily
from hcpdiff.models.text.words import Words
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.plugin import PluginInputs
from hcpdiff.randomness import generator
from hcpdiff.train.settings import TrainSettings
from hcpdiff.types import Batch, Conditioning


class Objective(nn.Module):
    """The denoising loss of a model family with its plugins.

    Args:
        words: attached to the family, if there are any.
        timesteps: (count, generator) -> (count,) timesteps.
        noise: (latents, generator) -> noise of the same shape.
        loss: (model_pred, target, timesteps, process) -> unreduced loss.
        weighting: (timesteps, process) -> weight per sample, (B,).
        guidance: if given, both prompts of a sample go through the model and their guided sum is what is trained.
    """

    def __init__(
        self,
        family: ModelFamily,
        plugins: PluginGroup,
        *,
        seed: int,
        words: Words | None = None,
        timesteps: Callable[[int, Generator], Tensor],
        noise: Callable[[Tensor, Generator], Tensor],
        loss: Callable[[Tensor, Tensor, Tensor, Process], Tensor],
        weighting: Callable[[Tensor, Process], Tensor] | None = None,
        guidance: float | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.family, self.plugins, self.words, self.seed = family, plugins, words, seed
        self.timesteps, self.noise, self.loss = timesteps, noise, loss
        self.weighting, self.guidance = weighting, guidance

    @classmethod
    def from_settings(
        cls,
        family: ModelFamily,
        plugins: PluginGroup,
        settings: TrainSettings,
        *,
        seed: int,
        words: Words | None = None,
    ) -> Objective:
        """The objective of a run; left out, timesteps are uniform, noise is Gaussian and the loss the squared error."""
        return cls(
            family,
            plugins,
            seed=seed,
            words=words,
            timesteps=settings.timesteps or uniform,
            noise=settings.noise or gaussian,
            loss=settings.loss or mse,
            weighting=settings.weighting,
            guidance=settings.guidance,
        )

    def forward(self, batch: Batch, *index: int | str) -> Tensor:
        """The loss of every sample, (B,); `index` names the draw of noise and timesteps, e.g. (step, dataset)."""
        process, n = self.family.process, len(batch)

        def draw(purpose: str) -> Generator:
            return generator(self.seed, purpose, *index)

        latents = batch.images if batch.encoded else self._latents(batch.images, draw("latents"))
        noise = self.noise(latents, draw("noise"))
        t = process.snap(self.timesteps(n, draw("timesteps"))).to(latents.device)
        noisy = process.add_noise(latents, noise, t)
        pred = self._single(batch, noisy, t) if self.guidance is None else self._guided(batch, noisy, t)
        error = self.loss(pred.float(), process.target(latents, noise, t).float(), t, process)
        if batch.loss_mask is not None:
            error = masked(error, batch.loss_mask)
        per_sample = error.flatten(1).mean(1)
        if self.weighting is not None:
            per_sample = per_sample * self.weighting(t, process).to(per_sample)
        return per_sample

    def _latents(self, images: Tensor, generator: Generator) -> Tensor:
        """In the VAE's own precision, as in a cache: half of it overflows in some."""
        with (
            torch.set_grad_enabled(self.vae_trained and torch.is_grad_enabled()),
            torch.autocast(images.device.type, enabled=False),
        ):
            return self.family.encode_image(images, generator=generator)

    def _single(self, batch: Batch, noisy: Tensor, t: Tensor) -> Tensor:
        self.plugins.check_reads(batch.inputs)
        self.plugins.feed(PluginInputs(batch.inputs, {}, t))
        positive = batch.positive if batch.positive is not None else self._encode([p.positive for p in batch.prompts])
        return self.family.denoise(noisy, t, self.family.with_size(positive, batch.sizes))

    def _guided(self, batch: Batch, noisy: Tensor, t: Tensor) -> Tensor:
        n, family = len(batch), self.family
        self.plugins.check_reads(batch.inputs)
        twice = {name: torch.cat([value, value]) for name, value in batch.inputs.items()}
        branches = {"negative": slice(0, n), "positive": slice(n, 2 * n)}
        self.plugins.feed(PluginInputs(twice, branches, torch.cat([t, t])))
        if batch.positive is not None and batch.negative is not None:
            negative, positive = batch.negative, batch.positive
        else:
            prompts = [p.negative for p in batch.prompts] + [p.positive for p in batch.prompts]
            negative, positive = self._encode(prompts).chunk(2)
        negative, positive = (family.with_size(c, batch.sizes) for c in (negative, positive))
        assert self.guidance is not None
        return guided(family.denoise, noisy, t, negative, positive, self.guidance, family.combine)

    def _encode(self, prompts: list[str]) -> Conditioning:
        with torch.set_grad_enabled(self.text_trained and torch.is_grad_enabled()):
            return self.family.encode_prompt(prompts)

    @cached_property
    def text_trained(self) -> bool:
        """Whether a text encoder, a plugin on one or a word learns: then prompts are encoded with gradients."""
        return self.words_trained or self._trains("text_encoders")

    @property
    def words_trained(self) -> bool:
        """Whether a word learns."""
        return self.words is not None and bool(self.words.trained)

    @cached_property
    def vae_trained(self) -> bool:
        """The same of the VAE."""
        return self._trains("vae")

    def _trains(self, part: str) -> bool:
        own = any(p.requires_grad for p in self.family.get_submodule(part).parameters())
        return own or self.plugins.trains_on(part)
