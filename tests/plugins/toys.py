"""Small models and plugins: blocks called by keyword that return tuples, a `Sequential`, one plugin of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.plugins import MultiPluginBlock, PluginBlock, SinglePluginBlock, WrapPluginBlock
from tests.models.tiny import mmdit_inputs, tiny_mmdit

WIDTH = 8


class Block(nn.Module):
    """Two streams in, two streams out, as in a transformer for images and text."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, *, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return image + self.ff(self.to_q(image)), text + self.to_k(text)


class Denoiser(nn.Module):
    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(WIDTH, 3)
        self.checkpointing = checkpointing

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        image = self.conv_in(latents).flatten(2).transpose(1, 2)
        for block in self.blocks:
            if self.checkpointing:
                image, text = checkpoint(block, image=image, text=text, use_reentrant=False)
            else:
                image, text = block(image=image, text=text)
        return self.out(image + text.mean(1, keepdim=True)).transpose(1, 2).unflatten(2, latents.shape[2:])


class Family(nn.Module):
    """What plugins see of a model family: parts by name."""

    def __init__(self, denoiser: nn.Module, text_encoders: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.text_encoders = nn.ModuleDict(text_encoders or {})


def toy_family(checkpointing: bool = False) -> Family:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    return Family(Denoiser(checkpointing), {"clip_l": encoder}).requires_grad_(False)


def toy_inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 4, 4, generator=generator), torch.randn(batch, 5, WIDTH, generator=generator)


def mmdit_family(checkpointing: bool = False) -> Family:
    model = tiny_mmdit()
    model.gradient_checkpointing("all" if checkpointing else "none")
    return Family(model).requires_grad_(False)


def mmdit_args(family: Family) -> tuple[Tensor, ...]:
    return tuple(mmdit_inputs(family.denoiser.config).values())


def ramp(like: Tensor) -> Tensor:
    """-1 to 1 over the last dimension: what no norm takes out."""
    return torch.linspace(-1, 1, like.shape[-1], dtype=like.dtype)


class Skip(PluginBlock):
    """Adds a learned multiple of one layer to another; it starts at zero."""

    def __init__(self, source: nn.Module, target: nn.Module, *, start: float = 0.0) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(float(start)))

    def forward(self, source: Tensor, value: Tensor) -> Tensor:
        return value + self.share * source.mean(dim=tuple(range(1, source.ndim))).view(-1, *[1] * (value.ndim - 1))


class Mixer(MultiPluginBlock):
    """Adds a learned multiple of the sum of all sources' means to every target."""

    def __init__(self, sources: Sequence[nn.Module], targets: Sequence[nn.Module], *, start: float = 0.0) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.full((len(targets),), float(start)))

    def forward(self, sources: list[Tensor]) -> list[Tensor]:
        total = sum(torch.tanh(s.flatten(1)).mean(1) for s in sources)
        return [share * total for share in self.shares]

    def write(self, index: int, value: Tensor, result: Tensor) -> Tensor:
        return value + result.view(-1, *[1] * (value.ndim - 1)) * ramp(value)


class Offset(SinglePluginBlock):
    """Adds a learned multiple of a ramp to a layer's output, a tensor or the first of a tuple."""

    def __init__(self, host: nn.Module, *, start: float = 0.0) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(start)))

    def forward(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + self.number * ramp(output[0]), *output[1:])
        return output + self.number * ramp(output)


class Scaled(WrapPluginBlock):
    """The layer times one plus a learned number."""

    def __init__(self, host: nn.Module, *, start: float = 0.0) -> None:
        super().__init__(host)
        self.number = nn.Parameter(torch.tensor(float(start)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.host(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] * (1 + self.number), *output[1:])
        return output * (1 + self.number)
