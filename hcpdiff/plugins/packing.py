"""Between the LoRA plugins of a model and the updates of `hcpdiff.formats`, which files hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hcpdiff.formats import diffusers, kohya, names, reading
from hcpdiff.formats.lora_files import Update, Updates, folded, listing, with_one_alpha, without_mid
from hcpdiff.plugins.lora import LoRA
from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.spec import PluginSpec
from hcpdiff.plugins.tree import named_layers

KEYS = {"lora_A.weight", "lora_B.weight", "lora_B.bias"}


def updates_of(plugins: Mapping[str, Plugin]) -> dict[str, Update] | None:
    """What plugins do to their layers, by layer path in the family; None if they are no plain LoRAs."""
    updates: dict[str, Update] = {}
    for layer, plugin in plugins.items():
        state = plugin.own_state()
        if not isinstance(plugin, LoRA) or not state.keys() <= KEYS:
            return None
        alpha = None if plugin.alpha == plugin.rank else plugin.alpha
        updates[layer] = Update(state["lora_A.weight"], state["lora_B.weight"], alpha, bias=state.get("lora_B.bias"))
    return updates


def architecture_of(family: nn.Module | None) -> names.Architecture | None:
    """What files know of a family; None if they do not know it."""
    name = getattr(family, "architecture", None)
    return names.ARCHITECTURES.get(name) if isinstance(name, str) else None


def pack(updates: Updates, arch: names.Architecture) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """The tensors of a file in the form that most programs load, its header, and what reading it again needs."""
    flat = sorted({layer.split(".")[1] for layer in updates if names.canonical(layer) != layer})
    note: dict[str, Any] = {"form": arch.form, "family": arch.name, "flat": flat}
    if arch.form == "kohya" and _fits_kohya(updates, arch):
        updates = with_one_alpha(updates)
        scales = {layer: update.scale for layer, update in updates.items() if update.scale != 1}
        return kohya.write(updates, arch), {}, note | {"scales": scales}
    named = {names.to_diffusers(arch, layer) or layer: update for layer, update in updates.items()}
    tensors, header = diffusers.write_named(named)
    return tensors, header, note | {"form": "diffusers"}


def unpack(tensors: Mapping[str, Tensor], note: Mapping[str, Any], where: str) -> dict[str, Update]:
    """Inverse of `pack` for a file in kohya's form; the scales in the note are exact, alpha is a float32."""
    arch = names.architecture(note["family"])
    updates = reading.parse(tensors, {}, arch, where=where)
    scales, result = note["scales"], {}
    for layer, update in updates.items():
        own = flattened(layer, note["flat"])
        result[own] = replace(update, alpha=update.rank * scales[own] if own in scales else None)
    return result


def flattened(layer: str, encoders: Any) -> str:
    """A layer as it was called where these text encoders have no `text_model`."""
    part = layer.split(".")[1] if layer.startswith("text_encoders.") else None
    return layer.replace(".text_model.", ".", 1) if part in encoders else layer


def tensors_of(updates: Updates) -> dict[str, Tensor]:
    """{layer path.parameter of a LoRA: tensor}."""
    tensors: dict[str, Tensor] = {}
    for layer, update in updates.items():
        tensors |= {f"{layer}.lora_A.weight": update.down, f"{layer}.lora_B.weight": update.up}
        if update.bias is not None:
            tensors[f"{layer}.lora_B.bias"] = update.bias
    return tensors


def fitted(family: nn.Module, updates: Updates, where: str) -> dict[str, Update]:
    """The updates by the layers of this model, with the shapes that a LoRA has there.

    Raises:
        ValueError: listing the layers that the model does not have.
    """
    layers = {path: layer for path, layer in named_layers(family) if isinstance(layer, LoRA.accepts)}
    found = {layer: names.live(layer, layers.__contains__) for layer in updates}
    if missing := [layer for layer, path in found.items() if path is None]:
        raise ValueError(
            f"{where}: {type(family).__name__} has no such layer for {len(missing)} of {len(updates)}: "
            f"{listing(missing)}"
        )
    return {path: _shaped(updates[layer], layers[path]) for layer, path in found.items() if path is not None}


def spec_of(updates: Updates, like: PluginSpec | None = None) -> PluginSpec:
    """A LoRA on exactly these layers, frozen, with their ranks and alphas."""
    settings = {layer: _options(update) for layer, update in updates.items()}
    usual = dict(Counter(tuple(options.items()) for options in settings.values()).most_common(1)[0][0])
    overrides = {layer: options for layer, options in settings.items() if options != usual}
    others = {k: v for k, v in (like.options if like else {}).items() if k not in usual}
    branch = like.branch if like else None
    plugin = like.plugin if like else LoRA
    return PluginSpec(
        plugin,
        on="",
        layers=list(updates),
        train=False,
        branch=branch,
        overrides=overrides,
        options={**others, **usual},
    )


def outside(layer: str, parts: Mapping[str, str]) -> str:
    """A path in the family as it is called in files."""
    for part, name in parts.items():
        if f"{layer}.".startswith(f"{part}."):
            return name + layer.removeprefix(part)
    return layer


def _fits_kohya(updates: Updates, arch: names.Architecture) -> bool:
    named = [names.to_kohya(arch, layer) for layer in updates]
    known = {name[0] for name in named if name is not None}
    return len(known) == len(named) and not any(update.bias is not None for update in updates.values())


def _options(update: Update) -> dict[str, Any]:
    alpha = None if update.alpha == update.rank else update.alpha
    return {"rank": update.rank, "alpha": alpha, "bias": update.bias is not None}


def _shaped(update: Update, layer: nn.Module) -> Update:
    """A 1 x 1 convolution's matrices have four dimensions in some files and two in others; here those of the layer."""
    update = without_mid(update)
    if update.alpha is not None and update.alpha <= 0:
        update = folded(update)
    if isinstance(layer, nn.Linear) and update.down.ndim == 4 and update.down.shape[2:] == (1, 1):
        return replace(update, down=update.down.flatten(1), up=update.up.flatten(1))
    if isinstance(layer, nn.Conv2d) and update.down.ndim == 2:
        return replace(update, down=update.down[:, :, None, None], up=update.up[:, :, None, None])
    return update
