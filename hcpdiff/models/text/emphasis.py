"""Weights in prompts: the grammar of the AUTOMATIC1111 web UI, and that of the braces.

    a (red:1.3) star     red counts 1.3 times
    a (red) star         1.1 times
    a [red] star         1 / 1.1 times
    a ((red)) star       weights in each other multiply
    artist_\\(style\\)     brackets that are meant as such
    a star BREAK a moon  the rest starts a new chunk

With braces, `{red:1.3}` and `{red}` are the only signs, and `\\{` is a brace that is meant as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

Grammar = Literal["webui", "braces"]
LARGEST = 1000.0  # weight, also of many in each other: beyond it numbers only overflow
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Span(NamedTuple):
    """Some of a prompt, and how much it counts."""

    text: str
    weight: float = 1.0


def parse(text: str, grammar: Grammar = "webui") -> list[list[Span]]:
    """The parts of a prompt that BREAK separates, each as spans, of which neighbours differ in weight.

    There is no wrong prompt. As in the web UI, a closing bracket that nothing opened is text, one that is never closed
    reaches to the end, and after a bracket `:` without a number is text.
    """
    rules = _rules(grammar)
    texts: list[str | None] = []  # None: BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {opening: [] for opening in rules.factors}

    def weigh(start: int, factor: float) -> None:
        for i in range(start, len(weights)):
            weights[i] *= factor

    for match in rules.sign.finditer(text):
        sign, closed = match[0], rules.closes.get(match[0][-1], "")
        if match["escaped"]:
            texts.append(match["escaped"])
        elif sign in opened:
            opened[sign].append(len(texts))
        elif closed and opened[closed]:
            weigh(opened[closed].pop(), float(match["number"]) if match["number"] else rules.factors[closed])
        else:
            first, *rest = _BREAK.split(sign)
            texts += [first, *(part for words in rest for part in (None, words))]
        weights += [1.0] * (len(texts) - len(weights))
    for opening, starts in opened.items():
        for start in starts:
            weigh(start, rules.factors[opening])
    return _joined(texts, weights)


def _joined(texts: list[str | None], weights: list[float]) -> list[list[Span]]:
    parts: list[list[Span]] = [[]]
    for text, exact in zip(texts, weights, strict=True):
        part, weight = parts[-1], max(-LARGEST, min(LARGEST, exact))
        if text is None:
            parts.append([])
        elif part and part[-1].weight == weight:
            part[-1] = Span(part[-1].text + text, weight)
        elif text:
            part.append(Span(text, weight))
    return parts


@dataclass(frozen=True)
class _Rules:
    factors: Mapping[str, float]  # {opening bracket: weight without a number}
    closes: Mapping[str, str]  # {closing bracket: what it closes}
    sign: re.Pattern[str]  # one bracket with what belongs to it, or a stretch of text


@lru_cache
def _rules(grammar: Grammar) -> _Rules:
    pairs = {"(": ")", "[": "]"} if grammar == "webui" else {"{": "}"}
    factors = {"(": 1.1, "[": 1 / 1.1, "{": 1.1}
    brackets = re.escape("".join(pairs) + "".join(pairs.values()))
    numbered = re.escape("".join(closing for opening, closing in pairs.items() if opening != "["))
    sign = rf"\\(?P<escaped>[\\{brackets}])|:\s*(?P<number>{_NUMBER})\s*[{numbered}]|[^\\:{brackets}]+|."
    closes = {closing: opening for opening, closing in pairs.items()}
    return _Rules({opening: factors[opening] for opening in pairs}, closes, re.compile(sign, re.DOTALL))
