"""From a checked config to objects."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from hcpdiff.config import sections
from hcpdiff.config.binding import Call
from hcpdiff.config.loading import Config
from hcpdiff.config.mistakes import ConfigError, Key, Mistake, Origin, parsed, shown, split
from hcpdiff.config.reading import Reader


def build(config: Config | Any, where: str = "", expected: Any = None, *, trust: Sequence[str] = ()) -> Any:
    """The object or objects that a section of a config, or any node of one, stands for.

    `_target_: path` with its arguments becomes what the call returns, lists and dicts stay lists and dicts. Two places
    that name a `_target_`, also by interpolation, get an object each.

    Args:
        config: a Config, of which `where` names a section or a key such as `train.optimizer`; or a node itself.
        where: what errors call the node.
        expected: the type that receives the object; default: for a section what `SECTIONS` says, else anything.
            For a `Callable` the arguments that the caller gives are left open.
        trust: packages that `_target_` may name besides the ones hcpdiff trusts.

    Raises:
        ConfigError: the mistakes of the node, or the exception of a call with the place that it was made for.
    """
    key = parsed(where)
    node: Any = config
    origins = None
    if isinstance(config, Config):
        node, origins, trust = dict(config.tree), config, (*config.trust, *trust)
        for part in key:
            node = node[part]
        if expected is None and len(key) == 1 and where in sections.SECTIONS:
            expected = sections.annotation(where)
    reader = Reader(origins.origin if origins else _nowhere, trust)
    plan = reader.read(node, Any if expected is None else expected, key)
    mistakes = [m for m in origins.mistakes if parsed(m.key)[: len(key)] == key] if origins else []
    if reader.mistakes or mistakes:
        raise ConfigError([*mistakes, *reader.mistakes])
    return made(plan, reader)


def _nowhere(key: Key) -> Origin | None:
    return None


def made(plan: Any, reader: Reader) -> Any:
    """A plan with its calls made."""
    if isinstance(plan, dict):
        return {name: made(value, reader) for name, value in plan.items()}
    if isinstance(plan, (list, tuple)):
        return type(plan)(made(value, reader) for value in plan)
    if not isinstance(plan, Call):
        return plan
    args, kwargs = made(plan.args, reader), made(plan.kwargs, reader)
    if plan.partial:
        return functools.partial(plan.target, *args, **kwargs) if args or kwargs else plan.target
    try:
        return plan.target(*args, **kwargs)
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(mistakes_of(plan, error, reader)) from error


def mistakes_of(call: Call, error: Exception, reader: Reader) -> list[Mistake]:
    """The error of a call with its place in the config: the argument if the text begins with the name of one."""
    if isinstance(error, ConfigError):
        return error.mistakes
    key, text = split(str(error), call.key)
    name, _, rest = text.partition(": ")
    parts = name.split(".")  # e.g. word_names.who
    if key == call.key and parts[0] in call.kwargs and rest:
        key, text = (*key, *parts), rest
    elif key == call.key:
        kind = "" if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: "
        text = f"{call.name}: {kind}{text}".removesuffix(": ")
    return [Mistake(shown(key), text, reader.origin(key))]
