"""Transforms of whole captions: words put around them, or nothing left of them."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from hcpdiff.config.ranges import fraction
from hcpdiff.data.prompts.chain import check_probability


@dataclass(frozen=True)
class CaptionDropout:
    """Blanks the whole text with probability `p`; after the template this is the dropout that guidance needs."""

    p: Annotated[float, fraction] = 0.1  # the probability

    def __post_init__(self) -> None:
        check_probability("CaptionDropout.p", self.p)

    def __call__(self, text: str, rng: random.Random) -> str:
        return "" if rng.random() < self.p else text

    def outcomes(self, text: str) -> list[str]:
        return [text] if self.p == 0 or not text else [""] if self.p == 1 else [text, ""]


class _Certain(ABC):
    """A transform without chance."""

    @abstractmethod
    def changed(self, text: str) -> str:
        """The text that it makes of this one."""

    def __call__(self, text: str, rng: random.Random) -> str:
        return self.changed(text)

    def outcomes(self, text: str) -> list[str]:
        return [self.changed(text)]


@dataclass(frozen=True)
class Prefix(_Certain):
    """Puts a text before each caption."""

    text: str  # what to put there
    between: str = ", "  # what stands between the two, if the caption is not empty

    def __post_init__(self) -> None:
        _check_text("Prefix.text", self.text)

    def changed(self, text: str) -> str:
        """The caption with the text before it."""
        return self.text + self.between + text if text.strip() else self.text


@dataclass(frozen=True)
class Suffix(_Certain):
    """Puts a text behind each caption."""

    text: str  # what to put there
    between: str = ", "  # what stands between the two, if the caption is not empty

    def __post_init__(self) -> None:
        _check_text("Suffix.text", self.text)

    def changed(self, text: str) -> str:
        """The caption with the text behind it."""
        return text + self.between + self.text if text.strip() else self.text


@dataclass(frozen=True)
class Trigger(_Certain):
    """Puts words at the front of each caption, in their order, but for those that are somewhere in it already."""

    words: str | Sequence[str]  # e.g. `sks`, or [sks, red car]; a caption may have them in upper or lower case
    between: str = ", "  # what stands behind each word

    def __post_init__(self) -> None:
        words = [self.words] if isinstance(self.words, str) else self.words
        if not words:
            raise ValueError("Trigger.words: there are none; give at least one word")
        for word in words:
            _check_text("Trigger.words", word)

    def changed(self, text: str) -> str:
        """The caption with the words in it."""
        missing = [word for word, pattern in self._patterns.items() if not pattern.search(text)]
        return self.between.join([*missing, text] if text.strip() else missing)

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        words = [self.words] if isinstance(self.words, str) else self.words
        return {word: re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words}


def _check_text(key: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{key}: {text!r} would change nothing; give a text")
