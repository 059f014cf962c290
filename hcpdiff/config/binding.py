"""The keys of a config node bound to the arguments of what it names, without calling it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hcpdiff.config import trust
from hcpdiff.config.interpolation import UNKNOWN
from hcpdiff.config.kinds import LISTS, MAPPINGS, anything, call_arity, origin_of
from hcpdiff.config.mistakes import Key, hint, shown
from hcpdiff.config.signatures import Argument, Signature, signature

if TYPE_CHECKING:
    from hcpdiff.config.reading import Reader

TARGET_KEYS = ("_target_", "_args_", "_partial_")


@dataclass(frozen=True)
class Call:
    """An object to build; plain data holds these where objects will be."""

    target: Callable[..., Any]
    name: str  # as an error shows it
    key: Key
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    partial: bool = False


def named(reader: Reader, node: dict[Any, Any], key: Key) -> Any:
    """What the `_target_` of a node names, or UNKNOWN."""
    path, place = node["_target_"], (*key, "_target_")
    if path is UNKNOWN:
        return UNKNOWN
    if not isinstance(path, str):
        return reader.wrong(place, f"{path!r} is not a path such as 'torch.optim.AdamW'")
    try:
        return trust.resolve(path, reader.trusted)
    except trust.TargetError as error:
        return reader.wrong(place, str(error))


def bind_target(reader: Reader, node: dict[Any, Any], annotation: Any, key: Key) -> Any:
    """The call that a node with `_target_` makes for a receiver of type `annotation`."""
    target, path = named(reader, node, key), node["_target_"]
    if target is UNKNOWN:
        return UNKNOWN
    arity = call_arity(annotation)
    if arity is not None and inspect.isclass(target) and _makes_callables(target):
        arity = None
    if arity is None and node.get("_partial_"):
        arity = -1
    expected = origin_of(annotation)
    if arity is None and not _fits(target, expected):
        return reader.wrong((*key, "_target_"), f"{path} is not a {expected.__name__}")
    return bind(reader, node, target, path, key, arity=arity)


def bind(
    reader: Reader,
    node: dict[Any, Any],
    target: Any,
    name: str,
    key: Key,
    *,
    arity: int | None = None,
    skip: Sequence[str] = (),
    also: Sequence[str] = (),
    complete: bool = True,
) -> Call:
    """The call of `target` with the keys of a node as arguments; what does not fit becomes a mistake.

    Args:
        name: what errors call the target.
        arity: how many of its first arguments the program gives when it runs, -1 for any number of them; None: the
            call is made when the config is built.
        skip: arguments that the program gives by name.
        also: other keys that may stand in the node, for hints.
        complete: whether a missing argument is a mistake.
    """
    takes = signature(target).without(skip)
    args = _args(reader, node, takes, name, key, arity)
    taken = takes.positional[: len(args) if arity is None else max(arity, 0)]
    given = {argument.name for argument in taken}
    kwargs = {}
    for part, value in node.items():
        if part in TARGET_KEYS:
            continue
        argument = takes.arguments.get(part) if takes.known else Argument(part, Any, required=False)
        if argument is None or not argument.by_name:
            names = [*(n for n in takes.names if n not in given), *also]
            rest = f"; it takes {', '.join(names)}" if names else "; it takes no arguments"
            rest = _left_over(reader, key, part) or rest
            reader.wrong((*key, part), f"{name} takes no such argument{hint(part, [*names, *TARGET_KEYS], rest)}")
        elif part in given:
            why = "is in `_args_` already" if arity is None else "comes from hcpdiff when it runs"
            reader.wrong((*key, part), f"{why}; remove it")
        elif part in trust.REFUSED_ARGUMENTS and value not in trust.REFUSED_ARGUMENTS[part]:
            reader.wrong((*key, part), f"{value!r} is refused: it can run code that comes with a model")
        else:
            kwargs[part] = _read(reader, value, argument, (*key, part))
    missing = [f"{n!r}" for n, a in takes.arguments.items() if a.required and n not in given and n not in node]
    if missing and complete and arity != -1:
        reader.wrong(key, f"{name} needs {', '.join(missing)}")
    return Call(target, name, key, args, kwargs, partial=arity is not None)


def _left_over(reader: Reader, key: Key, part: Any) -> str:
    """What to do about an argument of an inherited config whose `_target_` was changed."""
    here, there = reader.origin((*key, part)), reader.origin((*key, "_target_"))
    if here is None or there is None or here.file is None or here.file == there.file:
        return ""
    if there.file is None:
        return f"; add {shown((*key, '_replace_'))}=true to drop what files set there"
    return f"; add `_replace_: true` at {there} to drop what other files set there"


def _args(reader: Reader, node: dict[Any, Any], takes: Signature, name: str, key: Key, arity: int | None) -> list[Any]:
    """The arguments of `_args_`, which come without names."""
    values, place = node.get("_args_", []), (*key, "_args_")
    room = len(takes.positional)
    if takes.known and arity is not None and arity > room:
        reader.wrong((*key, "_target_"), f"{name} cannot be used here: it gets {arity} values, but takes {room}")
    if not isinstance(values, list):
        reader.wrong(place, "is a list of the first arguments, without their names")
    elif values and arity is not None and arity > 0:
        reader.wrong(place, f"the first arguments of {name} come from hcpdiff when it runs; name yours")
    elif takes.known and len(values) > room:
        reader.wrong(place, f"has {len(values)} values, but {name} takes {room} without a name")
    else:
        accepting = takes.positional if takes.known else [Argument("", Any, required=False)] * len(values)
        pairs = zip(values, accepting, strict=False)
        return [_read(reader, value, argument, (*place, i)) for i, (value, argument) in enumerate(pairs)]
    return []


def _read(reader: Reader, value: Any, argument: Argument, key: Key) -> Any:
    if value is None and argument.default is None:  # `rate: float = None`
        return None
    return reader.read(value, argument.annotation, key)


def _makes_callables(cls: type) -> bool:
    """Whether instances can be called, e.g. those of nn.Module."""
    return any("__call__" in vars(base) for base in cls.__mro__)


def _fits(target: Any, expected: Any) -> bool:
    """False if a class was named that is certainly not of the expected kind."""
    if anything(expected) or expected in LISTS or expected in MAPPINGS:
        return True
    if not (inspect.isclass(target) and inspect.isclass(expected)):
        return True
    if getattr(expected, "_is_protocol", False):
        methods = {name for base in expected.__mro__ if getattr(base, "_is_protocol", False) for name in vars(base)}
        return all(hasattr(target, name) for name in methods if not name.startswith("_"))
    return issubclass(target, expected)
