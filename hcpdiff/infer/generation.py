"""From prompts to pictures: the one inference loop, for users and for previews in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from hcpdiff.data.images.cutting import cut, place, unit_tensor
from hcpdiff.data.images.reading import read_rgb
from hcpdiff.data.sources.base import Record
from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import guided, needs_negative
from hcpdiff.infer.request import Request
from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.plugin import PluginInputs
from hcpdiff.types import Prompt, SizeInfo


@dataclass(frozen=True)
class Picture:
    """One finished picture and what made it."""

    image: Image.Image
    prompt: Prompt
    seed: int
    path: Path | None = None  # of its file, once it is saved


@torch.no_grad()
def generate(
    family: ModelFamily,
    request: Request,
    *,
    plugins: PluginGroup | None = None,
    on_pictures: Callable[[list[Picture]], object] | None = None,
) -> list[Picture]:
    """All pictures of `request`, in order.

    Args:
        plugins: attached plugins that want the step's inputs (branches, control image).
        on_pictures: called with the pictures of each batch as soon as they are finished.

    Raises:
        ValueError: the size does not suit the model.
    """
    check_size(family, request.size)
    pictures: list[Picture] = []
    with _inference(family), _inference(plugins):
        for part in _batches(request.pictures(), request.batch_size):
            images = _generate_batch(family, request, part, plugins)
            done = [Picture(to_pil(image), p, seed) for image, (p, seed) in zip(images, part, strict=True)]
            pictures += done
            if on_pictures is not None:
                on_pictures(done)
    return pictures


@contextmanager
def _inference(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module is in eval mode (no dropout); after it, in the mode that it was in."""
    if module is None:
        yield
        return
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _batches(items: list[tuple[Prompt, int]], size: int) -> Iterator[list[tuple[Prompt, int]]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _generate_batch(
    family: ModelFamily, request: Request, part: Sequence[tuple[Prompt, int]], plugins: PluginGroup | None
) -> Tensor:
    guidance = guidance_of(request, family)
    n, two_branches = len(part), needs_negative(guidance)
    if request.combine is not None and not two_branches:
        raise ValueError("combine: at a guidance of 1 there is one prediction and nothing to combine; leave it out")
    device = next(family.denoiser.parameters()).device
    branches = {"negative": slice(0, n), "positive": slice(n, 2 * n)} if two_branches else {}
    tensors = {}
    if request.control_image is not None:
        (plugins or PluginGroup(family, {}, [])).check_reads(["control_image"])
        tensors["control_image"] = _control(request.control_image, request.size).to(device)
    sizes = [SizeInfo(request.size, (0, 0), request.size)] * n

    def feed(t: Tensor | None) -> None:
        if plugins is not None:
            plugins.feed(PluginInputs(tensors, branches, t))

    feed(None)
    prompts = ([p.negative for p, _ in part] if two_branches else []) + [p.positive for p, _ in part]
    conditioning = family.with_size(family.encode_prompt(prompts), sizes * (1 + two_branches))
    negative, positive = conditioning.chunk(2) if two_branches else (None, conditioning)

    def predict(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(device).expand(n)
        feed(torch.cat([t, t]) if two_branches else t)
        pred = guided(family.denoise, latents, t, negative, positive, guidance, request.combine or family.combine)
        return family.process.split(pred, latents, t)

    generators = [torch.Generator().manual_seed(seed) for _, seed in part]
    spec, (height, width) = family.latent, request.size
    shape = (spec.channels, height // spec.downscale, width // spec.downscale)
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
    spacing = request.spacing or family.spacing
    visited = spacing(request.steps, family.process, request.size)
    sampler: Callable[..., Tensor] = request.sampler or samplers.euler
    latents = sampler(predict, noise, visited, family.process, generators=generators)
    with torch.autocast(device.type, enabled=False):  # the VAE in its own precision: half of it overflows in some
        return family.decode(latents)


def guidance_of(request: Request, family: ModelFamily) -> float:
    """The guidance scale of a request, or of the model where it names none."""
    return family.default_guidance if request.guidance is None else request.guidance


def _control(path: str, size: tuple[int, int]) -> Tensor:
    """The control image, scaled and centre-cropped to the picture, (1, 3, H, W) in [0, 1]; plugins repeat it."""
    image = read_rgb(Path(path).expanduser())
    return unit_tensor(cut(Record(image), place((image.height, image.width), size)).image)[None]


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to an 8-bit picture."""
    pixels = ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def check_size(family: ModelFamily, size: tuple[int, int], *, where: str = "size") -> None:
    """Raise unless the model can make pictures of `size` (height, width), the config's key `where`."""
    multiple = family.latent.multiple_of
    limit = family.latent.max_side
    if limit is not None and max(size) > limit:
        raise ValueError(f"{where}: {list(size)} is too large, as this model has positions for {limit} pixels a side")
    if any(side % multiple for side in size):
        near = tuple(max(multiple, round(side / multiple) * multiple) for side in size)
        raise ValueError(f"{where}: {list(size)} does not divide by {multiple}, as this model needs; use {list(near)}")
