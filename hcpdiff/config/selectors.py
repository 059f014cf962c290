"""Whether the layer selectors of a config match layers of its model, which is built without reading weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from hcpdiff.config import sections
from hcpdiff.config.binding import Call
from hcpdiff.config.building import made
from hcpdiff.config.mistakes import Key, shown

if TYPE_CHECKING:
    from hcpdiff.config.loading import Config
    from hcpdiff.config.reading import Reader

Skeleton = Callable[[str], Any]


def check_selectors(config: Config, reader: Reader) -> None:
    """Note every selector that matches no layer, in a config that has no other mistakes."""
    skeleton = _skeleton(config, reader)
    if skeleton is None:
        return
    targets = importlib.import_module("hcpdiff.plugins.targets")
    for name, node in (config.get("plugins") or {}).items():
        key = ("plugins", name)
        spec = made(reader.read(node, sections.item("plugins"), key), reader)
        for field in ("layers", "from_layers", "to_layers"):
            patterns = getattr(spec, field)
            if patterns or (field == "layers" and not spec.between):
                options = {"prefixes": spec.plugin.prefixes, "takes": spec.plugin.takes}
                _find(reader, targets.find_layers, skeleton, spec.on, patterns, (*key, field), options)
    for i, node in enumerate(config.get("finetune") or []):
        group = made(reader.read(node, sections.item("finetune"), ("finetune", i)), reader)
        _find(reader, targets.find_layers, skeleton, group.on, group.layers, ("finetune", i, "layers"), {})


def _skeleton(config: Config, reader: Reader) -> Skeleton | None:
    """The model's parts on the meta device by their path; None for a model that has no skeleton."""
    if config.get("model") is None:
        return None
    plan = reader.read(config["model"], sections.annotation("model"), ("model",))
    target = plan.target if isinstance(plan, Call) else None
    family = target.__self__ if inspect.ismethod(target) else target
    skeleton = getattr(family, "skeleton", None)
    return skeleton and cache(lambda part: skeleton(part, **made(plan.kwargs, reader)))


def _find(
    reader: Reader, find: Callable[..., Any], skeleton: Skeleton, on: str, patterns: list[str], key: Key, options: Any
) -> None:
    try:
        part = skeleton(on)
    except (ValueError, AttributeError, KeyError) as error:
        reader.wrong((*key[:-1], "on"), f"the model has no part {on!r}: {error}")
        return
    except OSError as error:
        reader.wrong(("model",), str(error))
        return
    try:
        find(part, patterns, where=shown(key), **options)
    except ValueError as error:
        reader.wrong_text(key, str(error))
