"""Transforms of captions that are sentences."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from typing import Annotated

from hcpdiff.config.ranges import at_least_0, fraction
from hcpdiff.data.prompts.chain import check_count, check_probability, subsets

_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|\n+")  # noqa: RUF001
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "mt", "vs", "cf", "approx", "ca", "fig", "e.g", "i.e"}


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with the spaces before it; joined they are the text.

    A sentence ends at . ! ? or their like before a space, at 。 ！ ？, or with its line; not at an abbreviation ("Dr.",
    "e.g.", "U.S."), an initial ("J. Smith") or the number of an item ("2. ").
    """
    sentences, start, seen, blank = [], 0, 0, True
    for match in _END.finditer(text):
        blank = blank and not text[seen : match.end()].strip()
        seen = match.end()
        if not blank and not (match[0] == "." and _abbreviated(text, start, match.start())):
            sentences.append(text[start:seen])
            start, blank = seen, True
    rest = text[start:]
    if rest.strip() or not sentences:
        return [*sentences, rest]
    return [*sentences[:-1], sentences[-1] + rest]


@dataclass(frozen=True)
class SentenceDropout:
    """Leaves each sentence of a caption out with probability `p`."""

    p: Annotated[float, fraction] = 0.1  # the probability for each sentence
    keep: Annotated[int, at_least_0] = 0  # how many sentences at the front are never left out

    def __post_init__(self) -> None:
        check_probability("SentenceDropout.p", self.p)
        check_count("SentenceDropout.keep", self.keep)

    def __call__(self, text: str, rng: random.Random) -> str:
        sentences = split_sentences(text)
        stays = [number < self.keep or rng.random() >= self.p for number in range(len(sentences))]
        return "".join(itertools.compress(sentences, stays)).strip()

    def outcomes(self, text: str) -> list[str] | None:
        sentences = split_sentences(text)
        choices = subsets([number >= self.keep for number in range(len(sentences))], self.p)
        if choices is None:
            return None
        return list({"".join(itertools.compress(sentences, stays)).strip(): None for stays in choices})


def _abbreviated(text: str, start: int, end: int) -> bool:
    """Whether the full stop at `end` belongs to the word before it; the sentence begins at `start`."""
    before = text[max(start, end - 20) : end]
    word = (before.split() or [""])[-1].lstrip("([\"'“‘")  # noqa: RUF001
    if word.lower() in _ABBREVIATIONS or re.fullmatch(r"(\w\.)+\w", word):
        return True
    initial = len(word) == 1 and word.isupper() and word != "I"
    return initial or (word.isdigit() and text[start:end].strip() == word)
