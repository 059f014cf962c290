"""Caption transforms one after the other, and all that can come out at the end."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from hcpdiff.types import Prompt

CaptionTransform = Callable[[str, random.Random], str | Prompt]
MOST_OUTCOMES = 256  # of one caption; more than that count as endless, as a run hardly meets one of them twice


def apply(transforms: Sequence[CaptionTransform], caption: str, rng: random.Random) -> Prompt:
    """The caption after all transforms, in order.

    Once a template has made it a Prompt, each further transform changes both sides; an empty negative stays empty.
    """
    text: str | Prompt = caption
    for transform in transforms:
        if isinstance(text, Prompt):
            negative = _side(transform(text.negative, rng)) if text.negative else ""
            text = Prompt(_side(transform(text.positive, rng)), negative)
        else:
            text = transform(text, rng)
    return _finished(transforms, text)


def outcomes(transforms: Sequence[CaptionTransform], captions: Iterable[str]) -> set[Prompt] | None:
    """Every prompt that `apply` can give for these captions.

    None if a transform does not tell, or there are more than `MOST_OUTCOMES` for a caption.
    """
    found: set[Prompt] = set()
    for caption in dict.fromkeys(captions):
        possible = _outcomes_of_one(transforms, caption)
        if possible is None:
            return None
        found |= possible
    return found


def subsets(may_go: Sequence[bool], p: float) -> Iterator[tuple[bool, ...]] | None:
    """Every choice of what stays if each thing that may go does so with probability `p`; None if they are too many."""
    if p == 0:
        return iter([(True,) * len(may_go)])
    if p == 1:
        return iter([tuple(not go for go in may_go)])
    if 2 ** min(sum(may_go), 64) > MOST_OUTCOMES:
        return None
    return itertools.product(*[(True, False) if go else (True,) for go in may_go])


def check_probability(key: str, p: float) -> None:
    """Raise a ValueError if it is none."""
    if not 0 <= p <= 1:
        raise ValueError(f"{key}: {p} is no probability; use a number from 0 to 1")


def check_count(key: str, count: int) -> None:
    """Raise a ValueError if it is below 0."""
    if count < 0:
        raise ValueError(f"{key}: {count} is too few; use 0 or more")


def _outcomes_of_one(transforms: Sequence[CaptionTransform], caption: str) -> set[Prompt] | None:
    texts: set[str | Prompt] = {caption}
    for transform in transforms:
        results: set[str | Prompt] = set()
        for text in texts:
            options = _of_prompt(transform, text) if isinstance(text, Prompt) else _of_text(transform, text)
            if options is None:
                return None
            results |= options
            if len(results) > MOST_OUTCOMES:
                return None
        texts = results
    return {_finished(transforms, text) for text in texts}


def _of_text(transform: CaptionTransform, text: str) -> set[str | Prompt] | None:
    possible = getattr(transform, "outcomes", None)
    options = None if possible is None else possible(text)
    return None if options is None else set(options)


def _of_prompt(transform: CaptionTransform, prompt: Prompt) -> set[str | Prompt] | None:
    positives = _of_text(transform, prompt.positive)
    negatives = _of_text(transform, prompt.negative) if prompt.negative else {""}
    if positives is None or negatives is None or len(positives) * len(negatives) > MOST_OUTCOMES:
        return None
    return {Prompt(_side(p), _side(n)) for p, n in itertools.product(positives, negatives)}


def _finished(transforms: Sequence[CaptionTransform], text: str | Prompt) -> Prompt:
    prompt = text if isinstance(text, Prompt) else Prompt(text)
    for transform in transforms:
        finish = getattr(transform, "finish", None)
        if finish is not None:
            prompt = Prompt(finish(prompt.positive), finish(prompt.negative))
    return prompt


def _side(text: str | Prompt) -> str:
    if isinstance(text, Prompt):
        raise ValueError("caption_transforms: only one of them may fill templates")
    return text
