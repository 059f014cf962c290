"""Folding plugins into the weights of their layers, and taking them out again bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.tree import outermost, plugin_hooks

if TYPE_CHECKING:
    from hcpdiff.plugins.group import Attachment

Original = tuple[nn.Module, str, Tensor | None]  # a layer, the name of its parameter, and what was there


@torch.no_grad()
def fuse(family: nn.Module, attachments: Sequence[Attachment]) -> list[Original]:
    """Fold every plugin that can be folded, all or none; what `restore` needs.

    Raises:
        ValueError: no plugin can be folded, or one stands behind another on its layer that cannot.
    """
    folded = [a for a in attachments if _delta(a) is not None]
    if not folded:
        raise ValueError("fuse: there is no plugin that can be folded into weights, such as a LoRA without `branch`")
    foldable = {a.plugin for a in folded}
    layers: dict[nn.Module, list[Attachment]] = {}
    for a in folded:
        _check_order(family, a, foldable)
        layers.setdefault(a.targets[0].layer, []).append(a)
    originals = [original for own in layers.values() for original in _fuse_layer(own)]
    for plugin in foldable:
        plugin.fused = True
    return originals


def restore(originals: Sequence[Original]) -> None:
    """Undo `fuse`, except that the plugins have to be told."""
    for layer, key, original in reversed(originals):
        if original is None:
            layer.register_parameter(key, None)
        else:
            layer.get_parameter(key).data = original


def _delta(a: Attachment) -> dict[str, Tensor] | None:
    return a.plugin.delta_for(a.targets[0].layer)


def _fuse_layer(attachments: Sequence[Attachment]) -> list[Original]:
    """Fold the plugins of one layer, each with what it does to the layer as it is without them."""
    totals: dict[str, Tensor] = {}
    for a in attachments:
        for key, change in (_delta(a) or {}).items():
            totals[key] = totals[key] + change if key in totals else change
    return [_add(attachments[0].targets[0].layer, key, change) for key, change in totals.items()]


def _check_order(family: nn.Module, a: Attachment, foldable: set[Plugin]) -> None:
    """What a plugin adds comes behind what earlier plugins made of the output; in the weights it would come before."""
    layer = a.targets[0].layer
    before = []
    for hook in plugin_hooks(layer):
        owner = hook.owner
        if owner is a.plugin:
            break
        if not hook.pre and owner not in foldable:
            before.append(owner)
    if outermost(family, a.path) is not layer:
        before.append(outermost(family, a.path))
    if before:
        raise ValueError(
            f"fuse: {a.plugin.where} cannot be folded into {a.path!r}, because {type(before[0]).__name__} works there "
            "before it; detach that first, or do not fuse"
        )


def _add(layer: nn.Module, key: str, change: Tensor) -> Original:
    parameter = getattr(layer, key)
    if parameter is None:
        like = layer.get_parameter("weight")
        layer.register_parameter(key, nn.Parameter(change.to(like), requires_grad=False))
        return layer, key, None
    if not parameter.is_floating_point():
        raise ValueError(
            f"fuse: a {type(layer).__name__} with {parameter.dtype} weights cannot take a plugin; do not fuse"
        )
    original = parameter.data
    parameter.data = (original.float() + change.to(original.device)).to(original.dtype)
    return layer, key, original
