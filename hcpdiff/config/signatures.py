"""What a class or function takes: names, types and which are required, read from its signature without calling it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument of a signature."""

    name: str
    annotation: Any  # a type; Any where it has none
    required: bool
    default: Any = None
    by_position: bool = False
    by_name: bool = True


@dataclass(frozen=True)
class Signature:
    """The arguments of a class or function."""

    arguments: dict[str, Argument]
    known: bool = True  # False: written in C without a signature, so nothing can be said

    @property
    def names(self) -> list[str]:
        """What can be given by name."""
        return [name for name, argument in self.arguments.items() if argument.by_name]

    def without(self, names: Sequence[str]) -> Signature:
        """The signature as if these arguments were not there."""
        return Signature({n: a for n, a in self.arguments.items() if n not in names}, self.known) if names else self

    @property
    def positional(self) -> list[Argument]:
        """What can be given by position, in order."""
        return [argument for argument in self.arguments.values() if argument.by_position]


class Unseen:
    """Stands for a type that is only imported for type checkers: anything fits it."""

    def __getattr__(self, name: str) -> Unseen:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, item: Any) -> Unseen:
        return self

    def __or__(self, other: Any) -> Unseen:
        return self

    __ror__ = __or__

    def __call__(self) -> None:
        """Types are callable."""


UNSEEN = Unseen()


@lru_cache(maxsize=1024)
def signature(target: Callable[..., Any]) -> Signature:
    """The signature of a class or function; what `**kwargs` hands on to base classes is included."""
    arguments: dict[str, Argument] = {}
    try:
        for i, (parameters, definition) in enumerate(_definitions(target)):
            sink = None
            for parameter in parameters:
                if parameter.kind is parameter.VAR_KEYWORD:
                    sink = parameter
                elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name not in arguments:
                    arguments[parameter.name] = _argument(parameter, target, definition, own=i == 0)
            if sink is None:
                break
            for name in _unpacked(sink, definition) or _read_from_sink(definition, sink.name):
                arguments.setdefault(name, Argument(name, Any, required=False))
    except (ValueError, TypeError):  # inspect.signature: written in C
        return Signature({}, known=False)
    return Signature(arguments)


def _definitions(target: Any) -> Iterator[tuple[list[inspect.Parameter], Any]]:
    """The parameters of the target and then of the functions of the same name in its base classes."""
    if inspect.isclass(target):
        classes, name, own = target.__mro__, "__init__", target.__init__
    elif inspect.ismethod(target) and inspect.isclass(target.__self__):
        classes, name, own = target.__self__.__mro__, target.__name__, target.__func__
    else:
        classes, name, own = (), "", target
    yield list(inspect.signature(target).parameters.values()), inspect.unwrap(own)
    for definition in [vars(cls)[name] for cls in classes if name in vars(cls) and cls is not object][1:]:
        function = inspect.unwrap(getattr(definition, "__func__", definition))
        yield list(inspect.signature(function).parameters.values())[1:], function


def _argument(parameter: inspect.Parameter, target: Any, definition: Any, *, own: bool) -> Argument:
    annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
    return Argument(
        parameter.name,
        _evaluated(annotation, _scope(target, definition, parameter.name)),
        required=own and parameter.default is parameter.empty,
        default=parameter.default,
        by_position=own and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD),
        by_name=parameter.kind is not parameter.POSITIONAL_ONLY,
    )


def _unpacked(parameter: inspect.Parameter, definition: Any) -> list[str]:
    """The keys of a TypedDict in `**kwargs: Unpack[Settings]`."""
    annotation = _evaluated(parameter.annotation, getattr(definition, "__globals__", {}))
    inner = typing.get_args(annotation)
    return list(getattr(inner[0], "__annotations__", {})) if inner and "Unpack" in repr(annotation) else []


def _read_from_sink(definition: Any, sink: str) -> list[str]:
    """The names that a function reads from its `**kwargs`: `kwargs.pop("x", ...)`, `kwargs.get("x")`, `kwargs["x"]`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(definition)))
    except (OSError, TypeError, SyntaxError):
        return []
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Attribute(ast.Name(name), "pop" | "get"), [ast.Constant(str(key)), *_]) if name == sink:
                found.append(key)
            case ast.Subscript(ast.Name(name), ast.Constant(str(key))) if name == sink:
                found.append(key)
    return found


def _scope(target: Any, definition: Any, name: str) -> dict[str, Any]:
    """The globals in which the annotation of argument `name` was written."""
    if inspect.isclass(target) and dataclasses.is_dataclass(target):
        for cls in target.__mro__:
            if name in vars(cls).get("__annotations__", {}):
                return vars(sys.modules[cls.__module__])
    return getattr(definition, "__globals__", {})


def _evaluated(annotation: Any, scope: dict[str, Any]) -> Any:
    """The type that an annotation means, with UNSEEN for names that exist only for type checkers."""
    if not isinstance(annotation, str):
        return annotation
    unseen: dict[str, Any] = {}
    while True:
        try:
            # The text is Python source of an imported module, never of a config.
            return typing.get_type_hints(_Holder(annotation), {**scope}, unseen, include_extras=True)["it"]
        except NameError as error:
            name = error.name if error.name and error.name not in unseen else None
            if name is None:
                return Any
            unseen[name] = _standard(name)
        except (TypeError, AttributeError, SyntaxError, ValueError):
            return Any


class _Holder:
    def __init__(self, annotation: str) -> None:
        self.__annotations__ = {"it": annotation}


def _standard(name: str) -> Any:
    """A name of `typing` or `collections.abc` that a module imports for type checkers only, else UNSEEN."""
    import collections.abc
    import pathlib

    for module in (collections.abc, typing, pathlib):
        if hasattr(module, name):
            return getattr(module, name)
    return UNSEEN
