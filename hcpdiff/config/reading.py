"""A config against the types that its receivers ask for: every mistake, and a plan of what to build.

A plan is plain data with a `Call` wherever an object will be; `build` makes the calls. `_target_` may stand anywhere.
Where a function or a class that makes no callable objects is named for something to call, the program's own positional
arguments are left open and the rest is bound (`functools.partial`); users need not say `_partial_`.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hcpdiff.config import kinds, trust
from hcpdiff.config.binding import TARGET_KEYS, bind, bind_target
from hcpdiff.config.interpolation import UNKNOWN
from hcpdiff.config.kinds import LISTS, MAPPINGS, anything, bare, call_arity, describe, members, origin_of
from hcpdiff.config.mistakes import Key, Mistake, Origin, hint, shown, shown_path, similarity, split
from hcpdiff.config.plugin_specs import is_plugin_spec, read_plugin
from hcpdiff.config.ranges import ExistingPath, Range


class Reader:
    """Reads nodes of one config; `mistakes` collects what is wrong in them."""

    def __init__(self, origin: Callable[[Key], Origin | None], trusted: Sequence[str] = ()) -> None:
        self.origin = origin
        self.trusted = tuple(trusted)
        self.mistakes: list[Mistake] = []

    def wrong(self, key: Key, text: str) -> Any:
        """Note a mistake."""
        self.mistakes.append(Mistake(shown(key), text, self.origin(key)))
        return UNKNOWN

    def wrong_text(self, key: Key, text: str) -> Any:
        """Note a mistake whose text may itself begin with the key."""
        return self.wrong(*split(text, key))

    def read(self, node: Any, annotation: Any, key: Key) -> Any:
        """The plan of a node that is received as `annotation`."""
        if node is UNKNOWN:
            return UNKNOWN
        options = members(annotation)
        return self._marked(node, options[0], key) if len(options) == 1 else self._union(node, options, annotation, key)

    def check_names(self, node: dict[Any, Any], key: Key, *, target_expected: bool) -> bool:
        """Whether a name in a group without `_target_` looks like a misspelt one."""
        near = [n for n in map(str, node) if similarity(n, "_target_") > 0.85 and (target_expected or n != "target")]
        for name in node:
            if str(name) in near or str(name).startswith("_"):
                self.wrong((*key, name), f"there is no such key{hint(name, TARGET_KEYS)}")
        return bool(near)

    def _marked(self, node: Any, annotation: Any, key: Key) -> Any:
        """Read as one type, and see whether the value is in range and the path exists."""
        before = len(self.mistakes)
        plan = self._one(node, annotation, key)
        for mark in bare(annotation)[1] if len(self.mistakes) == before else ():
            if isinstance(mark, Range) and (complaint := mark.complaint(plan)):
                self.wrong(key, complaint)
            elif isinstance(mark, ExistingPath) and isinstance(plan, (str, Path)):
                self._path(Path(plan).expanduser(), mark.kind, key)
        return plan

    def _union(self, node: Any, options: list[Any], annotation: Any, key: Key) -> Any:
        """The first member that the node fits; else what is wrong with the likeliest one."""
        options = [option for option in options if option is not type(None)]
        if node is None and len(options) < len(members(annotation)):
            return None
        if any(kinds.is_dtype(option) for option in options):  # `str | torch.dtype`: not any text
            options = [option for option in options if option is not str]
        if len(options) == 1:
            return self._marked(node, options[0], key)
        options.sort(key=lambda option: not _alike(node, option))  # so "1" is a text before it is a number
        trials = []
        for option in options:
            trial = Reader(self.origin, self.trusted)
            plan = trial._marked(node, option, key)
            if not trial.mistakes:
                return plan
            trials.append(trial)
        likely = [(trial, option) for trial, option in zip(trials, options, strict=True) if _alike(node, option)]
        if len(likely) == 1 or (likely and isinstance(node, dict)):
            self.mistakes += min(likely, key=lambda pair: _misnamed(*pair, key))[0].mistakes
            return UNKNOWN
        return self.wrong(key, f"{kinds.said(node)} is not {describe(annotation)}")

    def _one(self, node: Any, annotation: Any, key: Key) -> Any:
        if isinstance(node, dict):
            return self._group(node, annotation, key)
        origin, args = origin_of(annotation), typing.get_args(bare(annotation)[0])
        if isinstance(node, list) and (anything(annotation) or origin in LISTS):
            return self._list(node, origin, args, key)
        try:
            return kinds.scalar(node, annotation)
        except kinds.MisfitError as misfit:
            return self.wrong(key, str(misfit))

    def _group(self, node: dict[Any, Any], annotation: Any, key: Key) -> Any:
        origin, args = origin_of(annotation), typing.get_args(bare(annotation)[0])
        if is_plugin_spec(origin):
            return read_plugin(self, node, origin, key)
        if "_target_" in node:
            return bind_target(self, node, annotation, key)
        if dataclasses.is_dataclass(origin) or self._implied(origin):
            return bind(self, node, origin, shown(key), key)
        target_expected = call_arity(annotation) is not None or _abstract(origin)
        if self.check_names(node, key, target_expected=target_expected):
            return UNKNOWN
        if target_expected:
            return self.wrong(key, "needs a `_target_` that says which one is meant")
        if anything(annotation) or origin in MAPPINGS:
            kind = args[1] if origin in MAPPINGS and len(args) == 2 else Any
            return {name: self.read(value, kind, (*key, name)) for name, value in node.items()}
        return self.wrong(key, f"{kinds.said(node)} is not {describe(annotation)}")

    def _implied(self, origin: Any) -> bool:
        """A class of hcpdiff's or the user's that a group of lines without `_target_` can mean."""
        ours = ("hcpdiff", *trust.named(self.trusted))
        return inspect.isclass(origin) and origin.__module__.partition(".")[0] in ours and not _abstract(origin)

    def _list(self, node: list[Any], origin: Any, args: tuple[Any, ...], key: Key) -> Any:
        fixed = origin is tuple and bool(args) and args[-1] is not Ellipsis
        if fixed and len(args) != len(node):
            return self.wrong(key, f"has {len(node)} values; {len(args)} are needed")
        types = args if fixed else (args[:1] or (Any,)) * len(node)
        items = [self.read(value, kind, (*key, i)) for i, (value, kind) in enumerate(zip(node, types, strict=True))]
        return tuple(items) if origin is tuple else items

    def _path(self, path: Path, kind: str, key: Key) -> None:
        if path.is_dir() if kind == "folder" else path.is_file() if kind == "file" else path.exists():
            return
        if path.exists():
            self.wrong(key, f"{shown_path(path)} is not a {kind}")
            return
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = hint(path.name, names, f"; set {shown(key)} to one that exists")
        self.wrong(key, f"no {kind or 'file or folder'} at {shown_path(path)}{near}")


def _misnamed(trial: Reader, option: Any, key: Key) -> bool:
    """Whether a node that a union's member did not fit names a class of another member."""
    target = shown((*key, "_target_"))
    return origin_of(option) in LISTS or any(mistake.key == target for mistake in trial.mistakes)


def _alike(node: Any, annotation: Any) -> bool:
    """Whether the node has the shape that the type asks for, whatever is inside."""
    origin = origin_of(annotation)
    if isinstance(node, dict):
        if origin in MAPPINGS:
            return "_target_" not in node
        return call_arity(annotation) is not None or getattr(origin, "__module__", "builtins") != "builtins"
    return origin in LISTS if isinstance(node, list) else type(node) is origin


def _abstract(origin: Any) -> bool:
    """A class that cannot be built itself: the config must say which kind."""
    if not inspect.isclass(origin) or origin in MAPPINGS or origin in LISTS:
        return False
    return inspect.isabstract(origin) or getattr(origin, "_is_protocol", False)
