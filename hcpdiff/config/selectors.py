"""Whether the layer selectors of a config match layers of its model, which is built without reading weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from hcpdiff.config import sections
from hcpdiff.config.binding import Call
from hcpdiff.config.building import made
from hcpdiff.config.interpolation import UNKNOWN
from hcpdiff.config.mistakes import ConfigError, Key, shown
from hcpdiff.config.reading import Reader

if TYPE_CHECKING:
    from hcpdiff.config.loading import Config

Skeleton = Callable[[str], Any]


def skeleton(config: Config, part: str) -> Any:
    """A part of the config's model, e.g. "denoiser", on the meta device: its layers without weights.

    Raises:
        ConfigError: the config of the model has mistakes, or the model has no such part or no skeleton.
    """
    reader = Reader(config.origin, config.trust)
    parts = _skeletons(config, reader)
    module = _part(reader, parts, part, ("model",)) if parts else None
    if parts is None and not reader.mistakes:
        reader.wrong(("model",), "this model cannot be looked into without reading its weights")
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return module


def latent_spec(config: Config) -> Any:
    """The LatentSpec of the config's model, without reading weights.

    Raises:
        ConfigError: the config of the model has mistakes, or the model does not say it.
    """
    reader = Reader(config.origin, config.trust)
    model = _model(config, reader)
    spec = getattr(model[0], "latent_spec", None) if model else None
    if spec is None and not reader.mistakes:
        reader.wrong(("model",), "this model does not say which image sizes it takes without reading its weights")
    if reader.mistakes or model is None or spec is None:
        raise ConfigError(reader.mistakes)
    return spec(*model[1], **model[2])


def check_selectors(config: Config, reader: Reader) -> None:
    """Note every selector that matches no layer, in a config that has no other mistakes."""
    parts = _skeletons(config, reader)
    if parts is None:
        return
    find_layers = importlib.import_module("hcpdiff.plugins.targets").find_layers
    for name, node in (config.get("plugins") or {}).items():
        key: Key = ("plugins", name)
        spec = made(reader.read(node, sections.item("plugins"), key), reader)
        if not spec.between:
            _find_all(reader, parts, spec, key)
            continue
        for field in ("from_layers", "to_layers"):
            patterns = getattr(spec, field) or getattr(spec.plugin, field, ())
            find = partial(find_layers, prefixes=spec.plugin.prefixes, takes=spec.plugin.takes)
            _find(reader, find, parts, spec.on, patterns, (*key, field))
    for i, node in enumerate(config.get("finetune") or []):
        key = ("finetune", i)
        group = made(reader.read(node, sections.item("finetune"), key), reader)
        _find(reader, partial(find_layers, prefixes=("re:",)), parts, group.on, group.layers, (*key, "layers"))


def _skeletons(config: Config, reader: Reader) -> Skeleton | None:
    """The model's parts on the meta device by their path; None for a model that has no skeleton."""
    model = _model(config, reader)
    if model is None:
        return None
    family, args, kwargs = model
    make = getattr(family, "skeleton", None)
    return make and cache(lambda part: make(part, *args, **kwargs))


def _model(config: Config, reader: Reader) -> tuple[Any, list[Any], dict[str, Any]] | None:
    """The class of the config's model, and what it is called with."""
    if config.get("model") is None:
        return None
    plan = reader.read(config["model"], sections.annotation("model"), ("model",))
    target = plan.target if isinstance(plan, Call) else None
    if target is None:
        return None
    family = target.__self__ if inspect.ismethod(target) else target
    return family, made(plan.args, reader), made(plan.kwargs, reader)


def _part(reader: Reader, parts: Skeleton, on: str, key: Key) -> Any:
    try:
        return parts(on)
    except OSError as error:
        return reader.wrong_text(("model", "path"), str(error))
    except (ValueError, AttributeError, KeyError) as error:
        return reader.wrong(key, f"the model has no part {on!r}: {error}")


def _find(
    reader: Reader, find: Callable[..., Any], parts: Skeleton, on: str, patterns: Sequence[str], key: Key
) -> None:
    part = _part(reader, parts, on, (*key[:-1], "on"))
    if part is UNKNOWN:
        return
    try:
        find(part, patterns, where=shown(key))
    except ValueError as error:
        reader.wrong_text(key, str(error))


def _find_all(reader: Reader, parts: Skeleton, spec: Any, key: Key) -> None:
    """The same for a plugin that may work on several parts."""
    modules = {part: _part(reader, parts, part, (*key, "on")) for part in spec.parts}
    if UNKNOWN in modules.values():
        return
    try:
        importlib.import_module("hcpdiff.plugins.attach").find_in_parts(modules, spec, shown(key))
    except ValueError as error:
        reader.wrong_text((*key, "layers"), str(error))
