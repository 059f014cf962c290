"""What a config says of its model's layers and sizes, checked on the model without its weights."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
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


def token_counter(config: Config) -> Callable[[Sequence[str]], Any] | None:
    """What counts the tokens of texts as the config's model does, without its weights; None for one that cannot.

    See `SD3.token_counts` for what it gives.
    """
    model = _model(config, Reader(config.origin, config.trust))
    count = getattr(model[0], "token_counts", None) if model else None
    return None if model is None or count is None else lambda texts: count(texts, *model[1], **model[2])


def check_selectors(config: Config, reader: Reader) -> None:
    """Note every selector that matches no layer, in a config that has no other mistakes."""
    parts = _skeletons(config, reader)
    if parts is None:
        return
    touched: list[str] = []  # the paths of all layers that the run changes or reads, in the model
    for name, node in (config.get("plugins") or {}).items():
        key: Key = ("plugins", name)
        spec = _outer(reader.read(node, sections.item("plugins"), key))
        touched += (_find_pairs if spec.between else _find_all)(reader, parts, spec, key)
    find_layers = importlib.import_module("hcpdiff.plugins.targets").find_layers
    for i, node in enumerate(config.get("finetune") or []):
        key = ("finetune", i)
        group = _outer(reader.read(node, sections.item("finetune"), key))
        find = partial(find_layers, prefixes=("re:",))
        touched += _paths(group.on, _find(reader, find, parts, group.on, group.layers, (*key, "layers")))
    words = any(node.get("train", True) for node in (config.get("words") or {}).values())
    _check_caches(config, touched, reader, words=words)


def check_sizes(config: Config, sections_made: Mapping[str, Any], reader: Reader) -> None:
    """Note every picture that the model cannot make.

    Args:
        sections_made: what was made of `train` and `infer`.
    """
    train, infer = sections_made.get("train"), sections_made.get("infer")
    preview = getattr(train, "preview", None)
    requests = {("train", "preview", "requests", i): r for i, r in enumerate(getattr(preview, "requests", ()))}
    requests |= {} if infer is None else {("infer",): infer}
    if not requests or config.get("model") is None:
        return
    try:
        family: Any = SimpleNamespace(latent=latent_spec(config))
    except OSError as error:
        reader.wrong_text(("model", "path"), str(error))
        return
    except ValueError:  # it does not say without its weights
        return
    check_size = importlib.import_module("hcpdiff.infer.generation").check_size
    for key, request in requests.items():
        place = (*key, "size")
        try:
            check_size(family, request.size, where=shown(place))
        except ValueError as error:
            reader.wrong_text(place, str(error))


def check_merge(sections_made: Mapping[str, Any], reader: Reader) -> None:
    """Note why the files of a merge do not go together; of models only the names and shapes are read.

    Args:
        sections_made: what was made of `merge`.
    """
    if (settings := sections_made.get("merge")) is None:
        return
    try:
        importlib.import_module("hcpdiff.tools.merge").check(settings)
    except (ValueError, OSError) as error:
        reader.wrong_text(("merge",), str(error))


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
    if _has_calls([plan.args, plan.kwargs]):  # what they do is not for a check
        return None
    return family, made(plan.args, reader), made(plan.kwargs, reader)


def _has_calls(plan: Any) -> bool:
    """Whether objects would have to be made for these arguments; something to call later need not be."""
    if isinstance(plan, dict):
        return any(map(_has_calls, plan.values()))
    if isinstance(plan, (list, tuple)):
        return any(map(_has_calls, plan))
    return isinstance(plan, Call) and (not plan.partial or _has_calls([plan.args, plan.kwargs]))


def _outer(plan: Call) -> Any:
    """The object of a plan, with the plans of what is inside as they are."""
    return plan.target(*plan.args, **plan.kwargs)


def _part(reader: Reader, parts: Skeleton, on: str, key: Key) -> Any:
    try:
        return parts(on)
    except OSError as error:
        return reader.wrong_text(("model", "path"), str(error))
    except (ValueError, AttributeError, KeyError) as error:
        return reader.wrong(key, f"the model has no part {on!r}: {error}")


def _find(
    reader: Reader, find: Callable[..., Any], parts: Skeleton, on: str, patterns: Sequence[str], key: Key
) -> list[Any]:
    """The layers that selectors match."""
    part = _part(reader, parts, on, (*key[:-1], "on"))
    if part is UNKNOWN:
        return []
    try:
        return find(part, patterns, where=shown(key))
    except ValueError as error:
        reader.wrong_text(key, str(error))
        return []


def _find_pairs(reader: Reader, parts: Skeleton, spec: Any, key: Key) -> list[str]:
    """The paths in the model of the layers that a plugin takes values from and to."""
    attach = importlib.import_module("hcpdiff.plugins.attach")
    find_layers = importlib.import_module("hcpdiff.plugins.targets").find_layers
    single = not hasattr(spec.plugin, "from_layers")  # a plugin for each pair of layers
    before, found = len(reader.mistakes), list[str]()
    for field in ("from_layers", "to_layers"):
        patterns = getattr(spec, field) or getattr(spec.plugin, field, ())
        find = partial(find_layers, prefixes=spec.plugin.prefixes, takes=spec.plugin.takes, repeat=single)
        found += _paths(spec.on, _find(reader, find, parts, spec.on, patterns, (*key, field)))
    if single and len(reader.mistakes) == before:
        try:
            pairs = attach.find_pairs(parts(spec.on), shown(key), dataclasses.replace(spec, overrides={}))
            _check_overrides(reader, spec, [target for _, target in pairs], key)
        except ValueError as error:
            reader.wrong_text(key, str(error))
    return found


def _find_all(reader: Reader, parts: Skeleton, spec: Any, key: Key) -> list[str]:
    """The paths in the model of the layers that a plugin works on, in one part or several."""
    modules = {part: _part(reader, parts, part, (*key, "on")) for part in spec.parts}
    if UNKNOWN in modules.values():
        return []
    attach = importlib.import_module("hcpdiff.plugins.attach")
    try:
        found = attach.find_in_parts(modules, spec, shown(key))
    except ValueError as error:
        reader.wrong_text((*key, "layers"), str(error))
        return []
    _check_overrides(reader, spec, [ref for refs in found.values() for ref in refs], key)
    return [path for part, refs in found.items() for path in _paths(part, refs)]


def _check_overrides(reader: Reader, spec: Any, targets: Sequence[Any], key: Key) -> None:
    check_overrides = importlib.import_module("hcpdiff.plugins.attach").check_overrides
    for pattern, override in spec.overrides.items():
        try:
            check_overrides(shown(key), dataclasses.replace(spec, overrides={pattern: override}), targets)
        except ValueError as error:
            reader.wrong_text((*key, "overrides", pattern), str(error))


def _paths(part: str, refs: Iterable[Any]) -> list[str]:
    return [f"{part}.{ref.path}".strip(".") for ref in refs]


def _check_caches(config: Config, touched: Sequence[str], reader: Reader, *, words: bool) -> None:
    """Note every cache of something that the run changes."""
    for name, node in (config.get("data") or {}).items():
        for cache_key, part, thing in (
            ("cache_latents", "vae", "the VAE"),
            ("cache_text", "text_encoders", "a text encoder"),
        ):
            key: Key = ("data", name, cache_key)
            if node.get(cache_key) and any(f"{path}.".startswith(f"{part}.") for path in touched):
                reader.wrong(key, f"this run changes {thing}, so what is cached would not be true; set it to false")
        if words and node.get("cache_text"):
            reader.wrong(("data", name, "cache_text"), "this run trains words, whose meaning changes; set it to false")
