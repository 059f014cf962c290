"""Types in the words of a config, and plain values as the types that a signature asks for."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from hcpdiff.config.mistakes import hint
from hcpdiff.config.signatures import UNSEEN

LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
LISTS += (collections.abc.Set, collections.abc.MutableSequence)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}


class MisfitError(ValueError):
    """A value that is not what the signature asks for; the text says what was wrong and what would be right."""


def bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type inside `Annotated[type, marks]`, NewTypes and such, and the marks."""
    marks: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(annotation) is Annotated:
            marks += annotation.__metadata__
            annotation = annotation.__origin__
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif getattr(annotation, "__value__", None) is not None:  # `type X = ...`
            annotation = annotation.__value__
        else:
            return annotation, marks


def members(annotation: Any) -> list[Any]:
    """The types of a union, nested ones too; of anything else the type itself."""
    inner, marks = bare(annotation)
    if typing.get_origin(inner) in (Union, types.UnionType):
        found = [member for arg in typing.get_args(inner) for member in members(arg)]
        return [Annotated[(member, *marks)] if marks and member is not type(None) else member for member in found]
    if inner is typing.Optional or isinstance(inner, typing.TypeVar):
        return [Any]
    return [type(None) if inner is None else annotation]


def anything(annotation: Any) -> bool:
    """Whether every value fits, or it cannot be known what fits."""
    inner = bare(annotation)[0]
    if typing.get_origin(inner) is Literal and UNSEEN in typing.get_args(inner):
        return True
    return inner in (Any, object, inspect.Parameter.empty, UNSEEN) or isinstance(inner, (typing.TypeVar, str))


def call_arity(annotation: Any) -> int | None:
    """How many positional values the program gives when it calls what this type asks for.

    None if it is not a type of things to call, -1 if the type does not say how many.
    """
    inner = bare(annotation)[0]
    origin = typing.get_origin(inner) or inner
    if origin is collections.abc.Callable:
        args = typing.get_args(inner)
        return len(args[0]) if args and isinstance(args[0], list) else -1
    if inspect.isclass(origin) and getattr(origin, "_is_protocol", False) and "__call__" in vars(origin):
        kinds = [p.kind for p in list(inspect.signature(vars(origin)["__call__"]).parameters.values())[1:]]
        return sum(kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD) for kind in kinds)
    return None


def origin_of(annotation: Any) -> Any:
    """`list` of `list[int]`, `dict` of `Mapping[str, int]`'s kind, else the type itself."""
    inner = bare(annotation)[0]
    return typing.get_origin(inner) or inner


def describe(annotation: Any) -> str:
    """A type in the words of somebody who writes YAML."""
    inner = bare(annotation)[0]
    origin, args = typing.get_origin(inner) or inner, typing.get_args(inner)
    options = members(inner)
    if len(options) > 1:
        words = list(dict.fromkeys(describe(option) for option in options))
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if origin in _WORDS:
        return _WORDS[origin]
    if origin is Literal:
        return "one of " * (len(args) > 1) + ", ".join(written(arg) for arg in args)
    if origin is tuple and args and args[-1] is not Ellipsis:
        same = set(map(describe, args)) == {describe(args[0])} and len(members(args[0])) == 1
        return f"a list of {len(args)} {_several(args[0]) if same else 'values'}"
    if origin in LISTS:
        return f"a list of {_several(args[0])}" if args and not anything(args[0]) else "a list"
    if origin in MAPPINGS or dataclasses.is_dataclass(origin):
        return "`name: value` lines"
    if call_arity(annotation) is not None:
        return "something to call: `_target_: ...` and its arguments"
    if inspect.isclass(origin) and issubclass(origin, enum.Enum):
        return f"one of {', '.join(member.name for member in origin)}"
    return f"a {getattr(origin, '__name__', origin)}: `_target_: ...` and its arguments"


def _several(annotation: Any) -> str:
    """`whole numbers` for int."""
    words = describe(annotation).removeprefix("a ")
    return f"{words}s" if words in ("whole number", "number", "path") else words


def written(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else repr(value)


def scalar(value: Any, annotation: Any) -> Any:
    """A plain value as the type asks for it: an integral float as an int, a numeric text as a float, a text as a Path.

    Raises:
        MisfitError: it is something else.
    """
    inner = bare(annotation)[0]
    origin = origin_of(inner)
    if anything(inner) or (inner is type(None) and value is None):
        return value
    if origin is Literal:
        return _literal(value, typing.get_args(inner))
    if inspect.isclass(origin) and issubclass(origin, enum.Enum):
        return origin[_literal(value, tuple(member.name for member in origin))]
    convert = _SCALARS.get(origin)
    if convert is not None:
        return convert(value)
    if is_dtype(origin):
        return _dtype(value)
    if _ours_to_judge(origin):
        brackets = f"; put it in brackets: [{value!r}]" if origin in LISTS and isinstance(value, str) else ""
        raise MisfitError(f"{said(value)} is not {describe(inner)}{brackets}")
    return value


def is_dtype(origin: Any) -> bool:
    """Whether a type is torch.dtype."""
    return getattr(origin, "__module__", "") == "torch" and getattr(origin, "__name__", "") == "dtype"


def _ours_to_judge(origin: Any) -> bool:
    """Other libraries' own types are left to them: a plain value may well fit there."""
    if origin in LISTS or origin in MAPPINGS or origin is type(None) or call_arity(origin) is not None:
        return True
    return inspect.isclass(origin) and origin.__module__.partition(".")[0] not in ("os", "numpy", "transformers", "PIL")


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise MisfitError(f"{said(value)} is not true or false")
    return value


def _int(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        quoted = isinstance(value, str) and value.strip().lstrip("+-").isdigit()
        advice = f"; write {value} without quotes" if quoted else ""
        raise MisfitError(f"{said(value)} is not a whole number{advice}")
    return value


def _float(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        return float(value if isinstance(value, str) else "")
    except ValueError:
        raise MisfitError(f"{said(value)} is not a number") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        quotes = f"; write '{written(value)}' in quotes" if isinstance(value, (int, float)) else ""
        raise MisfitError(f"{said(value)} is not text{quotes}")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str):
        raise MisfitError(f"{said(value)} is not a path")
    return Path(value)


def _dtype(value: Any) -> Any:
    """The name of a torch.dtype as it is; the receiver knows what to do with it."""
    names = ("float32", "bfloat16", "float16", "fp32", "bf16", "fp16")
    if isinstance(value, str) and value not in names and not is_dtype(type(getattr(sys.modules["torch"], value, None))):
        raise MisfitError(f"{said(value)} is no dtype{hint(value, names, '; use float32, bfloat16 or float16')}")
    return _text(value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _text,
    Path: _path,
    os.PathLike: _path,
}


def _literal(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        if value == option and isinstance(value, bool) == isinstance(option, bool):
            return option
    names = [str(option) for option in options]
    near = hint(value, names) if isinstance(value, str) else ""
    raise MisfitError(f"{said(value)} is not {describe(Literal[options])}{near}")


def said(value: Any) -> str:
    """The value as an error shows it; long ones by their kind."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a group of `name: value` lines"
    return repr(value) if isinstance(value, str) else written(value)
