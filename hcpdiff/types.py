"""The values that travel between the parts of the library.

Sizes and positions are (height, width) and (top, left) in pixels, always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SizeInfo:
    """How an image was cut out of its original: scaled, then cropped at `crop` to `target`, or padded below and right.

    Args:
        original: (height, width) of the file.
        crop: (top, left) in the scaled image.
        target: (height, width) that the model sees.
        scaled: (height, width) of the whole image after scaling, before crop or padding; None: it just covers the
            target.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    scaled: tuple[int, int] = None  # type: ignore[assignment]  # never None once it is made

    def __post_init__(self) -> None:
        if self.scaled is None:
            (height, width), (tall, wide) = self.original, self.target
            scale = max(tall / height, wide / width)
            scaled = max(tall, round(height * scale)), max(wide, round(width * scale))
            object.__setattr__(self, "scaled", scaled)


@dataclass(frozen=True)
class Prompt:
    """What to draw, and what to steer away from."""

    positive: str
    negative: str = ""


@dataclass
class Sample:
    """One training example on the CPU, before batching."""

    key: str
    prompt: Prompt
    size: SizeInfo
    image: Tensor  # (3, H, W) in [-1, 1]
    loss_mask: Tensor | None = None  # (1, H, W), weight of the loss per pixel
    inputs: dict[str, Tensor] = field(default_factory=dict)  # for plugins, e.g. control_image (3, H, W) in [0, 1]


@dataclass
class Batch:
    """Samples of one size, stacked."""

    keys: list[str]
    prompts: list[Prompt]
    sizes: list[SizeInfo]
    images: Tensor  # (B, 3, H, W) in [-1, 1]; if `encoded`, latents (B, C, h, w) scaled for the denoiser
    encoded: bool = False
    loss_mask: Tensor | None = None  # (B, 1, H, W), or (B, 1, h, w) if `encoded`
    inputs: dict[str, Tensor] = field(default_factory=dict)
    positive: Conditioning | None = None  # of the positive prompts, if cached
    negative: Conditioning | None = None  # of the negative prompts, if cached

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """This batch with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=move(self.images),
            loss_mask=None if self.loss_mask is None else move(self.loss_mask),
            inputs={k: move(v) for k, v in self.inputs.items()},
            positive=None if self.positive is None else self.positive.map(move),
            negative=None if self.negative is None else self.negative.map(move),
        )


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told besides the noisy latents.

    `mask` (B, L) says how often each token counts in attention: 0 hides it, 1 is a normal token, and n is n equal
    tokens at the price of one (its logit gets log n). None: every token counts once.
    """

    tokens: Tensor  # (B, L, D)
    mask: Tensor | None = None  # (B, L)
    pooled: Tensor | None = None  # (B, P)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # family-specific, each (B, ...)

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with `change` applied to every tensor."""
        return Conditioning(
            tokens=change(self.tokens),
            mask=None if self.mask is None else change(self.mask),
            pooled=None if self.pooled is None else change(self.pooled),
            extras={k: change(v) for k, v in self.extras.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch, in the order given; all parts have the same fields and token length."""
        first = parts[0]

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            present = [t for t in tensors if t is not None]
            if present and len(present) != len(parts):
                raise ValueError("Conditioning.cat: some parts have a mask or pooled vector and some have none")
            return torch.cat(present) if present else None

        return Conditioning(
            tokens=torch.cat([p.tokens for p in parts]),
            mask=join([p.mask for p in parts]),
            pooled=join([p.pooled for p in parts]),
            extras={k: torch.cat([p.extras[k] for p in parts]) for k in first.extras},
        )

    def chunk(self, n: int) -> list[Conditioning]:
        """Split along the batch into n equal parts; inverse of `cat`."""
        size, rest = divmod(len(self), n)
        if rest:
            raise ValueError(f"Conditioning.chunk: a batch of {len(self)} does not divide into {n} equal parts")
        return [self.map(lambda tensor, i=i: tensor[i * size : (i + 1) * size]) for i in range(n)]
