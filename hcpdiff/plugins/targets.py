"""Which layers a plugin works on: `[pre_hook:][re:]path`.

Prefixes are stripped from the left and the rest is taken verbatim, so `re:blocks\\.(?:0|1)` is one pattern. `re:`
matches whole paths (`re.fullmatch`), `pre_hook:` means the layer's input, not its output, and `''` is the whole model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from hcpdiff.plugins.tree import named_layers

PREFIXES = ("pre_hook:", "re:")


@dataclass(frozen=True)
class LayerRef:
    """One layer of a model, and which side of it is meant."""

    path: str
    layer: nn.Module
    pre_hook: bool = False


def find_layers(
    model: nn.Module,
    patterns: Sequence[str],
    *,
    where: str = "layers",
    prefixes: Sequence[str] = PREFIXES,
    takes: Callable[[nn.Module], bool] | None = None,
    repeat: bool = False,
) -> list[LayerRef]:
    """The layers that the patterns name: pattern by pattern, in model order within one pattern.

    Args:
        where: the config key of `patterns`, for messages.
        prefixes: those that the reader of these patterns understands.
        takes: which layers are wanted; another layer that is named stands for the wanted ones inside it.
        repeat: keep a layer that several patterns name as often as it is named (for pairs); else it is given once.

    Raises:
        ValueError: a pattern matches nothing, is no regular expression, or has a prefix that is not understood.
    """
    if isinstance(patterns, str):
        raise ValueError(f"{where}: {patterns!r} is one string; write a list: [{patterns!r}]")
    if not patterns:
        raise ValueError(f"{where}: the list is empty; name at least one layer, or '' for the whole model")
    named = dict(named_layers(model))
    found: list[LayerRef] = []
    for i, pattern in enumerate(patterns):
        refs = _match(named, pattern, model=model, where=f"{where}[{i}]", prefixes=prefixes)
        found += _once(refs if takes is None else _expand(refs, takes, pattern=pattern, where=f"{where}[{i}]"))
    return found if repeat else _once(found)


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern without `pre_hook:` names this path."""
    return re.fullmatch(pattern.removeprefix("re:"), path) is not None if pattern.startswith("re:") else path == pattern


def close_names(name: str, names: Iterable[str]) -> str:
    """'; close names: a, b', or '' if there are none: the end of an error message."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; close names: {', '.join(near)}" if near else ""


def _match(
    named: dict[str, nn.Module], pattern: str, *, model: nn.Module, where: str, prefixes: Sequence[str]
) -> list[LayerRef]:
    used, rest = _split(pattern, where=where, prefixes=prefixes, named=named)
    if "re:" in used:
        try:
            regex = re.compile(rest)
        except re.error as error:
            raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        paths = [path for path in named if regex.fullmatch(path)]
    else:
        paths = [rest] if rest in named else []
    if not paths:
        plain = re.sub(r"\\(.)", r"\1", rest) if "re:" in used else rest
        raise ValueError(
            f"{where}: {pattern!r} matches no layer of {type(model).__name__}"
            f"{close_names(plain, named)}. `hcpdiff layers` lists all {len(named)}"
        )
    return [LayerRef(path, named[path], "pre_hook:" in used) for path in paths]


def _split(pattern: str, *, where: str, prefixes: Sequence[str], named: dict[str, nn.Module]) -> tuple[list[str], str]:
    """The prefixes of a pattern, and the rest."""
    used, rest = [], pattern
    for prefix in PREFIXES:
        if rest.startswith(prefix):
            used.append(prefix)
            rest = rest.removeprefix(prefix)
    for prefix in used:
        if prefix not in prefixes:
            known = " and ".join(repr(p) for p in prefixes) or "no prefix"
            raise ValueError(f"{where}: {pattern!r}: {prefix!r} does not fit here; this takes {known}")
    if "re:" not in used and rest not in named and (unknown := re.match(r"[A-Za-z_]+:", rest)):
        raise ValueError(
            f"{where}: {pattern!r} has an unknown prefix {unknown[0]!r}; "
            f"known are {', '.join(repr(p) for p in PREFIXES)}, in this order{close_names(unknown[0], PREFIXES)}"
        )
    return used, rest


def _expand(
    refs: Sequence[LayerRef], takes: Callable[[nn.Module], bool], *, pattern: str, where: str
) -> list[LayerRef]:
    """Layers that are wanted stay; of any other, the wanted layers inside it."""
    found = []
    for ref in refs:
        if takes(ref.layer):
            found.append(ref)
            continue
        for path, layer in named_layers(ref.layer):
            if takes(layer):
                found.append(LayerRef(f"{ref.path}.{path}".strip("."), layer, ref.pre_hook))
    if not found:
        kinds = ", ".join(sorted({type(ref.layer).__name__ for ref in refs}))
        raise ValueError(f"{where}: {pattern!r} names only {kinds}, and nothing inside can take this plugin")
    return found


def _once(refs: Iterable[LayerRef]) -> list[LayerRef]:
    first: dict[tuple[int, bool], LayerRef] = {}
    for ref in refs:
        first.setdefault((id(ref.layer), ref.pre_hook), ref)
    return list(first.values())
