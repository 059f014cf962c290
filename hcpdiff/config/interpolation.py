"""`${...}`: resolved once, with every interpolation that leads nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hcpdiff.config.mistakes import Key, Mistake, Origin, hint, shown


class Unknown:
    """Stands for a value that could not be resolved, and was reported already."""

    def __repr__(self) -> str:
        return "<unknown>"


UNKNOWN = Unknown()


def now(pattern: str = "%Y-%m-%d-%H-%M-%S") -> str:
    """`${now:}`: when the config was loaded, e.g. for `exp_dir: exps/${now:}`; strftime's patterns."""
    return datetime.now().strftime(pattern)


def pixels(height: int, width: int) -> int:
    """`${pixels:1024,1024}`: the number of pixels of an image."""
    return int(height) * int(width)


def register_resolvers() -> None:
    """Tell OmegaConf of `${now:}` (one moment per config) and `${pixels:h,w}`."""
    OmegaConf.register_new_resolver("now", now, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("pixels", pixels, replace=True)


def resolve(raw: DictConfig, origin: Callable[[Key], Origin]) -> tuple[dict[str, Any], list[Mistake]]:
    """Plain containers with every interpolation resolved; UNKNOWN for those that cannot be, and why."""
    mistakes: list[Mistake] = []
    inside: list[int] = []  # the containers that we are in, to notice an interpolation into one of them

    def walk(container: DictConfig | ListConfig, name: Any, key: Key) -> Any:
        def unknown(text: str) -> Unknown:
            mistakes.append(Mistake(shown(key), text, origin(key)))
            return UNKNOWN

        if OmegaConf.is_missing(container, name):
            return unknown("has no value yet; set it")
        try:
            value = container[name]
        except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
            return unknown(_explain(raw, _text(container, name), error))
        if not isinstance(value, (DictConfig, ListConfig)):
            return value
        if id(value) in inside:
            return unknown(f"{_text(container, name)} points back at itself; break the cycle")
        return walk_all(value, key)

    def walk_all(container: DictConfig | ListConfig, key: Key) -> Any:
        inside.append(id(container))
        try:
            if isinstance(container, ListConfig):
                return [walk(container, i, (*key, i)) for i in range(len(container))]
            return {name: walk(container, name, (*key, _part(name))) for name in container}
        finally:
            inside.pop()

    return walk_all(raw, ()), mistakes


def _part(name: Any) -> str | int:
    return name if isinstance(name, int) else str(name)


def _text(container: DictConfig | ListConfig, name: Any) -> str:
    """A value as it was written."""
    plain: Any = OmegaConf.to_container(container, resolve=False)
    return str(plain[name])


def _explain(raw: DictConfig, text: str, error: Exception) -> str:
    said = str(error)
    if isinstance(error, RecursionError) or "Recursive interpolation" in said or "parent node" in said:
        return f"{text} points back at itself; break the cycle"
    if missing := re.search(r"Interpolation key '(.*?)' not found", said):
        return f"${{{missing[1]}}} points at nothing{hint(missing[1], _names(raw))}"
    if resolver := re.search(r"Unsupported interpolation type (\S+)", said):
        return f"there is no resolver {resolver[1]} for {text}; use ${{now:}}, ${{pixels:h,w}} or ${{oc.env:NAME}}"
    return f"{text} cannot be resolved: {said.splitlines()[0]}"


def _names(raw: DictConfig) -> list[str]:
    names: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items() if isinstance(node, dict) else ():
            names.append(f"{prefix}{name}")
            walk(value, f"{prefix}{name}.")

    walk(OmegaConf.to_container(raw, resolve=False), "")
    return names
