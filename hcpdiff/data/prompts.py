"""From a caption to a prompt: tags shuffled and dropped, templates filled.

A caption transform is any callable `(text, rng) -> str`, or one that makes a `Prompt` as `TemplateFill` does. It may
also say what it can give: `outcomes(text) -> list`, or None if that is endless; so a cache of text knows what to hold.
"""

from __future__ import annotations

import itertools
import random
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hcpdiff.config.ranges import at_least_0, fraction
from hcpdiff.types import Prompt

CaptionTransform = Callable[[str, random.Random], str | Prompt]


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
    return text if isinstance(text, Prompt) else Prompt(text)


def outcomes(transforms: Sequence[CaptionTransform], captions: Iterable[str]) -> set[Prompt] | None:
    """Every prompt that `apply` can give for these captions; None if a transform does not tell."""
    texts: set[str | Prompt] = set(captions)
    for transform in transforms:
        results: set[str | Prompt] = set()
        for text in texts:
            if isinstance(text, Prompt):
                positives = _outcomes(transform, text.positive)
                negatives = _outcomes(transform, text.negative) if text.negative else [""]
                if positives is None or negatives is None:
                    return None
                results.update(Prompt(_side(p), _side(n)) for p, n in itertools.product(positives, negatives))
            else:
                options = _outcomes(transform, text)
                if options is None:
                    return None
                results.update(options)
        texts = results
    return {text if isinstance(text, Prompt) else Prompt(text) for text in texts}


def _outcomes(transform: CaptionTransform, text: str) -> Sequence[str | Prompt] | None:
    possible = getattr(transform, "outcomes", None)
    return None if possible is None else possible(text)


def _side(text: str | Prompt) -> str:
    if isinstance(text, Prompt):
        raise ValueError("caption_transforms: only one of them may fill templates")
    return text


@dataclass(frozen=True)
class TagShuffle:
    """Puts the comma-separated tags in random order; the first `keep` stay where they are."""

    keep: Annotated[int, at_least_0] = 0

    def __call__(self, text: str, rng: random.Random) -> str:
        tags = split_tags(text)
        rest = tags[self.keep :]
        rng.shuffle(rest)
        return ", ".join(tags[: self.keep] + rest)

    def outcomes(self, text: str) -> list[str] | None:
        tags = split_tags(text)
        return [", ".join(tags)] if len(tags) <= self.keep + 1 else None


@dataclass(frozen=True)
class TagDropout:
    """Leaves each comma-separated tag out with probability `p`; the first `keep` always stay."""

    p: Annotated[float, fraction] = 0.1
    keep: Annotated[int, at_least_0] = 0

    def __post_init__(self) -> None:
        _check_probability("TagDropout.p", self.p)

    def __call__(self, text: str, rng: random.Random) -> str:
        tags = split_tags(text)
        return ", ".join(tags[: self.keep] + [tag for tag in tags[self.keep :] if rng.random() >= self.p])

    def outcomes(self, text: str) -> list[str] | None:
        tags = split_tags(text)
        return [", ".join(tags)] if len(tags) <= self.keep or self.p == 0 else None


@dataclass(frozen=True)
class CaptionDropout:
    """Blanks the whole text with probability `p`; after the template this is the dropout that guidance needs."""

    p: Annotated[float, fraction] = 0.1

    def __post_init__(self) -> None:
        _check_probability("CaptionDropout.p", self.p)

    def __call__(self, text: str, rng: random.Random) -> str:
        return "" if rng.random() < self.p else text

    def outcomes(self, text: str) -> list[str]:
        return [text] if self.p == 0 else [""] if self.p == 1 else [text, ""]


class TemplateFill:
    """Fills a template drawn at random: `a photo of {pt1} {class}, {caption}`.

    Each `{name}` is replaced by its entry in `word_names`, and `{caption}` by the image's caption, unless `word_names`
    has a "caption". A name with no entry becomes nothing, and the commas and spaces that this leaves are tidied.
    An entry may be a pair [positive, negative] (for DreamArtist): then the negative prompt is the same template filled
    with the second word of every pair; plain words serve both.

    Args:
        templates: a text file with one template per line, or a list of templates.
        word_names: {name: word, or [positive word, negative word]}.
    """

    def __init__(
        self, templates: str | Path | Sequence[str], word_names: Mapping[str, str | Sequence[str] | None] | None = None
    ) -> None:
        self.templates = _read_templates(templates)
        words = {name: word for name, word in (word_names or {}).items() if word is not None}
        self.paired = any(not isinstance(word, str) for word in words.values())
        self.positive = {name: _side_of_pair(name, word, 0) for name, word in words.items()}
        self.negative = {name: _side_of_pair(name, word, 1) for name, word in words.items()}
        fields = {name for template in self.templates for name in _fields(template)}
        self.missing = sorted(fields - words.keys() - {"caption"})  # names that every fill leaves empty

    def __call__(self, text: str, rng: random.Random) -> Prompt:
        return self.fill(rng.choice(self.templates), text)

    def fill(self, template: str, caption: str) -> Prompt:
        """This template, filled."""
        blank = dict.fromkeys(_fields(template), "")
        positive = tidy(template.format(**{**blank, "caption": caption, **self.positive}))
        if not self.paired:
            return Prompt(positive)
        return Prompt(positive, tidy(template.format(**{**blank, "caption": caption, **self.negative})))

    def outcomes(self, text: str) -> list[Prompt]:
        return [self.fill(template, text) for template in self.templates]


def tidy(text: str) -> str:
    """Without empty tags, leading and trailing commas, and doubled spaces; commas within a tag ("1,000") stay."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?,( ?,)+", ",", text)
    text = re.sub(r" (?=,)", "", text)
    return text.strip(", ")


def split_tags(text: str) -> list[str]:
    """The tags of a comma-separated caption, stripped; empty ones left out."""
    return [tag for tag in (part.strip() for part in text.split(",")) if tag]


def _read_templates(templates: str | Path | Sequence[str]) -> list[str]:
    if isinstance(templates, (str, Path)):
        path = Path(templates).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"template: no file at {templates}; give a text file, or a list of templates")
        templates = path.read_text(encoding="utf-8-sig").splitlines()
    lines = [line.strip() for line in templates if line.strip()]
    if not lines:
        raise ValueError("template: there is no template in it; write one per line, e.g. 'a photo of {pt1}, {caption}'")
    return lines


def _fields(template: str) -> list[str]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template: {template!r}: {error}; write a literal brace twice") from error
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"template: {template!r}: {{{name}}} is not a name; use one like {{pt1}} or {{caption}}")
    return names


def _side_of_pair(name: str, word: str | Sequence[str], side: int) -> str:
    if isinstance(word, str):
        return word
    if not isinstance(word, Sequence) or len(word) != 2 or not all(isinstance(part, str) for part in word):
        raise ValueError(f"word_names.{name}: {word!r} is neither a word nor a pair [positive, negative] of words")
    return word[side]


def _check_probability(where: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{where}: {p} is no probability; use a number from 0 to 1")
