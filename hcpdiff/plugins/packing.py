"""Between the plugins that change weights and the changes of `hcpdiff.formats`, which files hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hcpdiff.formats import diffusers, dora, kohya, names, reading
from hcpdiff.formats.changes import AnyChange, Changes, mapped
from hcpdiff.formats.dora import with_alpha
from hcpdiff.formats.lora_files import Update, folded, listing, with_one_alpha, without_mid
from hcpdiff.formats.modules import taken_apart
from hcpdiff.plugins.dora import DoRA
from hcpdiff.plugins.lora import LoRA
from hcpdiff.plugins.plugin import Plugin
from hcpdiff.plugins.spec import PluginSpec
from hcpdiff.plugins.tree import named_layers
from hcpdiff.plugins.weight_change import WeightChange

_UNSET: dict[str, Any] = {"alpha": None, "on_input": False, "pieces": (), "dtype": None}  # of a WeightChange
KEYS = {"lora_A.weight", "lora_B.weight", "lora_B.bias"}


def updates_of(plugins: Mapping[str, Plugin]) -> dict[str, AnyChange] | None:
    """What plugins do to their layers, by layer path in the family; None if they do more than changing weights."""
    updates = {layer: _change(plugin) for layer, plugin in plugins.items()}
    known = {layer: mapped(change, Tensor.detach) for layer, change in updates.items() if change is not None}
    return known if len(known) == len(updates) else None


def _change(plugin: Plugin) -> AnyChange | None:
    if isinstance(plugin, (WeightChange, DoRA)):
        return plugin.change()
    if not isinstance(plugin, LoRA) or not plugin.own_state().keys() <= KEYS:
        return None
    alpha = None if plugin.alpha == plugin.rank else plugin.alpha
    return Update(plugin.lora_A.weight, plugin.lora_B.weight, alpha, bias=plugin.lora_B.bias)


def architecture_of(family: nn.Module | None) -> names.Architecture | None:
    """What files know of a family; None if they do not know it."""
    name = getattr(family, "architecture", None)
    return names.ARCHITECTURES.get(name) if isinstance(name, str) else None


def pack(
    updates: Changes, arch: names.Architecture, *, diffusers_too: bool = True
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]] | None:
    """The tensors of a file in the form that most programs load, its header, and what reading it again needs.

    None where no form of other programs has a place for all layers and their changes.

    Args:
        diffusers_too: whether it may be the form of diffusers.
    """
    flat = sorted({layer.split(".")[1] for layer in updates if names.canonical(layer) != layer})
    note: dict[str, Any] = {"form": "kohya", "family": arch.name, "flat": flat}
    if arch.form == "kohya" and kohya.fits(updates, arch):
        return _with_scales(kohya.write, updates, arch, note)
    if diffusers_too and all(diffusers.holds(update) for update in updates.values()):
        named = {names.to_diffusers(arch, layer) or layer: update for layer, update in updates.items()}
        tensors, header = diffusers.write_named(named)
        return tensors, header, note | {"form": "diffusers"}
    if kohya.fits_lycoris(updates, arch):
        return _with_scales(kohya.write_lycoris, updates, arch, note)
    return _with_scales(kohya.write, updates, arch, note) if kohya.fits(updates, arch) else None


def _with_scales(
    write: Callable[[Changes, names.Architecture], dict[str, Tensor]],
    updates: Changes,
    arch: names.Architecture,
    note: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """Alphas of files are float32, so the note has what they are exactly."""
    loras = {layer: update for layer, update in updates.items() if isinstance(update, Update)}
    updates = {**updates, **with_one_alpha(loras)} if arch.unet else updates
    scales = {layer: update.scale for layer, update in updates.items() if update.rank and update.scale != 1}
    return write(updates, arch), {}, note | {"scales": scales}


def unpack(tensors: Mapping[str, Tensor], note: Mapping[str, Any], where: str) -> dict[str, AnyChange]:
    """Inverse of `pack` for a file in kohya's form; the scales in the note are exact, alpha is a float32."""
    arch = names.architecture(note["family"])
    updates = reading.parse(tensors, {}, arch, where=where)
    scales, result = note["scales"], {}
    for layer, update in updates.items():
        own = flattened(layer, note["flat"])
        exact = update.rank * scales[own] if own in scales else None
        result[own] = with_alpha(update, exact) if update.rank else update
    return result


def flattened(layer: str, encoders: Any) -> str:
    """A layer as it was called where these text encoders have no `text_model`."""
    part = layer.split(".")[1] if layer.startswith("text_encoders.") else None
    return layer.replace(".text_model.", ".", 1) if part in encoders else layer


def tensors_of(updates: Changes, plugin: type[Plugin]) -> dict[str, Tensor]:
    """{layer path.parameter of such a plugin: tensor}."""
    tensors: dict[str, Tensor] = {}
    for layer, update in updates.items():
        own = _weight_change_state(update) if issubclass(plugin, WeightChange) else _lora_state(update)
        tensors |= {f"{layer}.{key}": tensor for key, tensor in own.items()}
    return tensors


def _weight_change_state(update: AnyChange) -> dict[str, Tensor]:
    return {key.replace(".", "_"): tensor for key, tensor in taken_apart(update)[0].items()}


def _lora_state(update: AnyChange) -> dict[str, Tensor]:
    if isinstance(update, dora.DoRA):
        return {**_lora_state(update.of), "lora_magnitude_vector": update.magnitude}
    assert isinstance(update, Update)
    bias = {} if update.bias is None else {"lora_B.bias": update.bias}
    return {"lora_A.weight": update.down, "lora_B.weight": update.up, **bias}


def fitted(family: nn.Module, updates: Changes, where: str) -> dict[str, AnyChange]:
    """The updates by the layers of this model, with the shapes that a LoRA has there.

    Raises:
        ValueError: listing the layers that the model does not have.
    """
    accepts = (LoRA if _plain(updates) else WeightChange).accepts
    layers = {path: layer for path, layer in named_layers(family) if isinstance(layer, accepts)}
    found = {layer: names.live(layer, layers.__contains__) for layer in updates}
    if missing := [layer for layer, path in found.items() if path is None]:
        raise ValueError(
            f"{where}: {type(family).__name__} has no such layer for {len(missing)} of {len(updates)}: "
            f"{listing(missing)}"
        )
    return {path: _shaped(updates[layer], layers[path]) for layer, path in found.items() if path is not None}


def _plain(updates: Changes) -> bool:
    return all(update.plain for update in updates.values())


def spec_of(updates: Changes, like: PluginSpec | None = None) -> PluginSpec:
    """A plugin on exactly these layers, frozen, with their settings: a LoRA if that is all, or else a WeightChange."""
    plugin = like.plugin if like else LoRA if _plain(updates) else WeightChange
    describe = _change_options if issubclass(plugin, WeightChange) else _options
    settings = {layer: describe(update) for layer, update in updates.items()}
    usual = Counter(json.dumps(options) for options in settings.values()).most_common(1)[0][0]
    options = json.loads(usual)
    overrides = {layer: own for layer, own in settings.items() if own != options}
    others = {k: v for k, v in (like.options if like else {}).items() if k not in options}
    branch = like.branch if like else None
    return PluginSpec(
        plugin,
        on="",
        layers=list(updates),
        train=False,
        branch=branch,
        overrides=overrides,
        options={**others, **options},
    )


def outside(layer: str, parts: Mapping[str, str]) -> str:
    """A path in the family as it is called in files."""
    for part, name in parts.items():
        if f"{layer}.".startswith(f"{part}."):
            return name + layer.removeprefix(part)
    return layer


def _change_options(update: AnyChange) -> dict[str, Any]:
    tensors, settings = taken_apart(update)
    found = {"shapes": {name: list(tensor.shape) for name, tensor in tensors.items()}, **_UNSET, **settings}
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) == 1:
        found["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    return found | {"pieces": [list(piece) for piece in found["pieces"]]}


def _options(update: AnyChange) -> dict[str, Any]:
    assert isinstance(update, Update)
    alpha = None if update.alpha == update.rank else update.alpha
    return {"rank": update.rank, "alpha": alpha, "bias": update.bias is not None}


def _shaped(update: AnyChange, layer: nn.Module) -> AnyChange:
    """A 1 x 1 convolution's matrices have four dimensions in some files and two in others; here those of the layer."""
    if not isinstance(update, Update):
        return update
    update = without_mid(update)
    if update.alpha is not None and update.alpha <= 0:
        update = folded(update)
    if isinstance(layer, nn.Linear) and update.down.ndim == 4 and update.down.shape[2:] == (1, 1):
        return replace(update, down=update.down.flatten(1), up=update.up.flatten(1))
    if isinstance(layer, nn.Conv2d) and update.down.ndim == 2:
        return replace(update, down=update.down[:, :, None, None], up=update.up[:, :, None, None])
    return update
