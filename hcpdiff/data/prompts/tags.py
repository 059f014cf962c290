"""Transforms of captions that are tags between commas."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, NamedTuple

from hcpdiff.config.ranges import at_least_0, fraction
from hcpdiff.data.prompts.chain import MOST_OUTCOMES, check_count, check_probability, subsets


def split_tags(text: str) -> list[str]:
    """The tags of a comma-separated caption, stripped; empty ones left out."""
    return [tag for tag in (part.strip() for part in text.split(",")) if tag]


class Protected:
    """The tags that a list names: by themselves in any case, or by a pattern `re:...` of the whole tag."""

    def __init__(self, entries: Sequence[str], key: str) -> None:
        if isinstance(entries, str):
            raise ValueError(f"{key}: {entries!r} is a text; give a list of tags, [{entries!r}]")
        self.tags = {entry.strip().casefold() for entry in entries if not entry.startswith("re:")}
        self.patterns: list[re.Pattern[str]] = []
        for entry in entries:
            if entry.startswith("re:"):
                try:
                    self.patterns.append(re.compile(entry.removeprefix("re:"), re.IGNORECASE))
                except re.error as error:
                    raise ValueError(f"{key}: {entry!r} is no regular expression: {error}") from error

    def __contains__(self, tag: str) -> bool:
        return tag.casefold() in self.tags or any(pattern.fullmatch(tag) for pattern in self.patterns)


class _Parts(NamedTuple):
    """A caption taken apart."""

    front: str  # left alone
    tags: list[str]
    back: str  # left alone
    marks: int  # how many separators stand between the three


@dataclass(frozen=True, kw_only=True)
class _TagTransform:
    keep: Annotated[int, at_least_0] = 0  # how many tags at the front are left alone
    # Tags that are left alone wherever they stand, in upper or lower case; `re:...` is a pattern of whole tags.
    protected: Sequence[str] = ()
    # Where it stands in a caption it counts instead of `keep`: all before the first is left alone, and all behind a
    # second one; the prompt does not show it.
    separator: str = "|||"

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_count(f"{name}.keep", self.keep)
        if not self.separator.strip(" ,\n\t"):
            raise ValueError(f"{name}.separator: {self.separator!r} cannot be told from a caption; use one like '|||'")
        _ = self._protected

    @cached_property
    def _protected(self) -> Protected:
        return Protected(self.protected, f"{type(self).__name__}.protected")

    def finish(self, text: str) -> str:
        """The text without separators."""
        if self.separator not in text:
            return text
        return ", ".join(part for part in (part.strip(", \t\n") for part in text.split(self.separator)) if part)

    def _parts(self, text: str) -> _Parts:
        pieces = text.split(self.separator, 2)
        if len(pieces) > 1:
            back = pieces[2].strip() if len(pieces) > 2 else ""
            return _Parts(pieces[0].strip(), split_tags(pieces[1]), back, len(pieces) - 1)
        tags = split_tags(text)
        return _Parts(", ".join(tags[: self.keep]), tags[self.keep :], "", 0)

    def _joined(self, parts: _Parts, tags: Sequence[str]) -> str:
        """The caption with these tags instead of its own."""
        middle = ", ".join(tags)
        if parts.marks:
            return f" {self.separator} ".join((parts.front, middle, parts.back)[: parts.marks + 1]).strip()
        return ", ".join(part for part in (parts.front, middle) if part)

    def _free(self, parts: _Parts) -> list[bool]:
        """Which of the tags may be changed."""
        return [tag not in self._protected for tag in parts.tags]


@dataclass(frozen=True)
class TagShuffle(_TagTransform):
    """Puts the comma-separated tags in random order; those that are left alone keep their places."""

    def __call__(self, text: str, rng: random.Random) -> str:
        parts = self._parts(text)
        free = self._free(parts)
        order = list(itertools.compress(parts.tags, free))
        rng.shuffle(order)
        return self._joined(parts, _placed(parts.tags, free, order))

    def outcomes(self, text: str) -> list[str] | None:
        parts = self._parts(text)
        free = self._free(parts)
        loose = list(itertools.compress(parts.tags, free))
        if len(loose) > 20 or math.factorial(len(loose)) > MOST_OUTCOMES:
            return None
        orders = itertools.permutations(loose)
        return list({self._joined(parts, _placed(parts.tags, free, order)): None for order in orders})


@dataclass(frozen=True)
class TagDropout(_TagTransform):
    """Leaves each comma-separated tag out with probability `p`."""

    p: Annotated[float, fraction] = 0.1  # the probability for each tag
    p_enable: Annotated[float, fraction] = field(default=1.0, kw_only=True)  # how often tags are left out at all

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability("TagDropout.p", self.p)
        check_probability("TagDropout.p_enable", self.p_enable)

    def __call__(self, text: str, rng: random.Random) -> str:
        parts = self._parts(text)
        if self.p_enable < 1 and rng.random() >= self.p_enable:
            return self._joined(parts, parts.tags)
        free = self._free(parts)
        stays = [rng.random() >= self.p if loose else True for loose in free]
        return self._joined(parts, list(itertools.compress(parts.tags, stays)))

    def outcomes(self, text: str) -> list[str] | None:
        parts = self._parts(text)
        choices = subsets(self._free(parts), self.p if self.p_enable else 0)
        if choices is None:
            return None
        whole = [self._joined(parts, parts.tags)] if self.p_enable < 1 else []
        some = [self._joined(parts, list(itertools.compress(parts.tags, stays))) for stays in choices]
        return list(dict.fromkeys(whole + some))


@dataclass(frozen=True)
class TagErase(_TagTransform):
    """Leaves all tags out at once with probability `p`, but those that are left alone: by default, the whole text."""

    p: Annotated[float, fraction] = 0.1  # the probability

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability("TagErase.p", self.p)

    def __call__(self, text: str, rng: random.Random) -> str:
        return self._erased(text) if rng.random() < self.p else text

    def outcomes(self, text: str) -> list[str]:
        results = ([text] if self.p < 1 else []) + ([self._erased(text)] if self.p else [])
        return list(dict.fromkeys(results))

    def _erased(self, text: str) -> str:
        parts = self._parts(text)
        return self._joined(parts, [tag for tag in parts.tags if tag in self._protected])


def _placed(tags: Sequence[str], free: Sequence[bool], order: Sequence[str]) -> list[str]:
    """The tags with the free ones in this order."""
    loose = iter(order)
    return [next(loose) if may_move else tag for tag, may_move in zip(tags, free, strict=True)]
