"""The choices that a text may hold: `{red|blue}`, and `__name__` for a line of a file.

One pass reads the text, and a `Maker` decides what becomes of it: one text drawn, or all that there could be.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from hcpdiff.data.prompts.chain import MOST_OUTCOMES

DEEPEST = 50  # levels of braces; a text with more is left as it is
_REFERENCE = r"(?<!\w)__(?=[\w./\\-]{0,100}?[^\W_])([\w./\\-]{1,200}?)__(?!\w)"
_TOKEN = re.compile(r"[{}|]|" + _REFERENCE)
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")

T = TypeVar("T")
Lines = Callable[[str], Sequence[tuple[float, str]]]  # name of a file -> weight and text of its lines


class Maker(Protocol[T]):
    """What becomes of the parts of a text."""

    def plain(self, text: str) -> T: ...
    def joined(self, parts: Sequence[T]) -> T: ...
    def chosen(self, options: Sequence[tuple[float, T]]) -> T: ...
    def line_of(self, name: str) -> T: ...


class TooManyError(Exception):
    """There are more outcomes than anybody wants to list."""


@dataclass
class _Option(Generic[T]):
    weight: float = 1.0
    prefix: str = ""  # the weight as it was written
    parts: list[T] = field(default_factory=list)


def expand(text: str, maker: Maker[T], *, references: bool) -> T:
    """The text with its choices made.

    Braces without a `|` between them, or without a partner, are text, and so is a choice that has no option with a
    weight above 0. `__name__` is a reference only if `references` is set.
    """
    groups: list[list[_Option[T]]] = [[_Option()]]  # the text, and the braces that are open; each with its options
    end = 0
    for token in _TOKEN.finditer(text):
        if token[1] is not None and not references:
            continue
        _append(groups, text[end : token.start()], maker)
        end = token.end()
        if token[1] is not None:
            groups[-1][-1].parts.append(maker.line_of(token[1]))
        elif token[0] == "{":
            groups.append([_Option()])
            if len(groups) > DEEPEST + 1:
                return maker.plain(text)
        elif token[0] == "|" and len(groups) > 1:
            groups[-1].append(_Option())
        elif token[0] == "}" and len(groups) > 1:
            parts = _closed(groups.pop(), maker)
            groups[-1][-1].parts.append(parts)
        else:
            groups[-1][-1].parts.append(maker.plain(token[0]))
    _append(groups, text[end:], maker)
    parts = list(groups[0][0].parts)
    for group in groups[1:]:
        parts += [maker.plain("{"), *_as_written(group, maker)]
    return maker.joined(parts)


def weighted(text: str) -> tuple[float, str]:
    """(2, "a") of "2::a"; the weight is 1 if there is none."""
    match = _WEIGHT.match(text)
    return (float(match[1]), text[match.end() :]) if match else (1.0, text)


def references(text: str) -> list[str]:
    """The names of the files that a text refers to."""
    return [token[1] for token in _TOKEN.finditer(text) if token[1] is not None]


class Drawn:
    """A `Maker` of one text, at random."""

    def __init__(self, rng: random.Random, lines: Lines | None) -> None:
        self.rng = rng
        self.lines = lines

    def plain(self, text: str) -> str:
        return text

    def joined(self, parts: Sequence[str]) -> str:
        return "".join(parts)

    def chosen(self, options: Sequence[tuple[float, str]]) -> str:
        return self.rng.choices([text for _, text in options], [weight for weight, _ in options])[0]

    def line_of(self, name: str) -> str:
        assert self.lines is not None
        return expand(self.chosen(self.lines(name)), self, references=True)


class Every:
    """A `Maker` of all texts that can be drawn.

    Raises:
        TooManyError: they are more than `MOST_OUTCOMES`.
    """

    def __init__(self, lines: Lines | None) -> None:
        self.lines = lines

    def plain(self, text: str) -> frozenset[str]:
        return frozenset([text])

    def joined(self, parts: Sequence[frozenset[str]]) -> frozenset[str]:
        if math.prod(len(part) for part in parts if len(part) > 1) > MOST_OUTCOMES:
            raise TooManyError
        return frozenset("".join(choice) for choice in itertools.product(*parts))

    def chosen(self, options: Sequence[tuple[float, frozenset[str]]]) -> frozenset[str]:
        union = frozenset().union(*(texts for _, texts in options))
        if len(union) > MOST_OUTCOMES:
            raise TooManyError
        return union

    def line_of(self, name: str) -> frozenset[str]:
        assert self.lines is not None
        lines = self.lines(name)
        if len({text for _, text in lines}) > MOST_OUTCOMES:
            raise TooManyError
        return self.chosen([(weight, expand(text, self, references=True)) for weight, text in lines])


def _append(groups: list[list[_Option[T]]], text: str, maker: Maker[T]) -> None:
    """Add plain text to the option that is being read; inside braces it may begin with the option's weight."""
    option = groups[-1][-1]
    if text and len(groups) > 1 and not option.parts and not option.prefix:
        option.weight, rest = weighted(text)
        option.prefix, text = text[: len(text) - len(rest)], rest
    if text:
        option.parts.append(maker.plain(text))


def _closed(group: list[_Option[T]], maker: Maker[T]) -> T:
    """What stands for braces that were closed."""
    options = [(option.weight, maker.joined(option.parts)) for option in group if option.weight > 0]
    if len(group) > 1 and options:
        return maker.chosen(options)
    return maker.joined([maker.plain("{"), *_as_written(group, maker), maker.plain("}")])


def _as_written(group: list[_Option[T]], maker: Maker[T]) -> list[T]:
    """The inside of braces that are no choice."""
    parts: list[T] = []
    for number, option in enumerate(group):
        parts += [maker.plain("|" * (number > 0) + option.prefix), *option.parts]
    return parts
