"""Parts of a model that a run has no use for any more: once all is cached, the VAE and the text encoders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.models.family import ModelFamily

log = logging.getLogger("hcpdiff.train")

# What of a family computes with which of its parts.
USES = {"vae": ("latent_distribution", "decode"), "text_encoders": ("encode_prompt",)}
IN_WORDS = {"vae": "the VAE", "text_encoders": "the text encoders"}


class Idle:
    """Keeps parts of a model off the device, or out of memory.

    A part that is kept waits on the CPU. Whenever the family encodes or decodes, in a preview or by a user's callback,
    it is on the device for just that call.

    Args:
        family: whose parts.
        device: where it computes.
        keep: the parts are needed now and then. False frees their memory: they cannot be used again.
    """

    def __init__(self, family: ModelFamily, device: torch.device, *, keep: bool) -> None:
        self.family, self.device, self.keep = family, device, keep
        self.parts: list[str] = []  # that were released

    def release(self, parts: Iterable[str]) -> None:
        """Take parts off the device, of "vae" and "text_encoders"; those that training does not use."""
        for part in parts:
            if part in self.parts:
                continue
            self.parts.append(part)
            module = self.family.get_submodule(part)
            if not self.keep:
                module.to("meta")
                log.info("all that this run needs of %s is cached: memory is freed of it", IN_WORDS[part])
            elif self.device.type != "cpu":
                module.to("cpu")
                for name in USES[part]:
                    setattr(self.family, name, _lent(getattr(self.family, name), module, self.device))
                log.info("all that training needs of %s is cached: that waits in the CPU's memory", IN_WORDS[part])


def _lent(compute: Callable[..., Any], module: nn.Module, device: torch.device) -> Callable[..., Any]:
    """`compute` with `module` on the device while it runs."""

    @wraps(compute)
    def call(*args: Any, **kwargs: Any) -> Any:
        with on_device(module, device):
            return compute(*args, **kwargs)

    return call


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, a module that nothing trains is on a device; after it, where it was, without a copy back."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
