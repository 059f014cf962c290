"""Prompt templates."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from hcpdiff.data.captions.text import lines_of, read_text
from hcpdiff.types import Prompt


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
        self.unused = sorted(words.keys() - fields)  # words that no template asks for
        self._blank = dict.fromkeys(fields, "")

    def __call__(self, text: str, rng: random.Random) -> Prompt:
        return self.fill(rng.choice(self.templates), text)

    def fill(self, template: str, caption: str) -> Prompt:
        """One of the templates, filled."""
        positive = tidy(template.format_map({**self._blank, "caption": caption, **self.positive}))
        if not self.paired:
            return Prompt(positive)
        return Prompt(positive, tidy(template.format_map({**self._blank, "caption": caption, **self.negative})))

    def outcomes(self, text: str) -> list[Prompt]:
        return list(dict.fromkeys(self.fill(template, text) for template in self.templates))


def tidy(text: str) -> str:
    """Without empty tags, leading and trailing commas, and doubled spaces; commas within a tag ("1,000") stay."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?,( ?,)+", ",", text)
    text = re.sub(r" (?=,)", "", text)
    return text.strip(", ")


def _read_templates(templates: str | Path | Sequence[str]) -> list[str]:
    if isinstance(templates, (str, Path)):
        if "{" in str(templates):
            raise ValueError(f"template: {templates!r} is a template, not a file; write it as a list: [{templates!r}]")
        path = Path(templates).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"template: no file at {templates}; give a text file, or a list of templates")
        templates = lines_of(read_text(path, "template"))
    lines = [line.strip() for line in templates if line.strip()]
    if not lines:
        raise ValueError("template: there is no template in it; write one per line, e.g. 'a photo of {pt1}, {caption}'")
    return lines


def _fields(template: str) -> list[str]:
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"template: {template!r}: {error}; write a literal brace twice") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None or not name.isidentifier() or form or conversion:
            written = f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form or ''}"
            raise ValueError(
                f"template: {template!r}: {{{written}}} is not a name; use one like {{pt1}} or {{caption}}, and write "
                "a literal brace twice"
            )
        names.append(name)
    return names


def _side_of_pair(name: str, word: str | Sequence[str], side: int) -> str:
    if isinstance(word, str):
        return word
    if not isinstance(word, Sequence) or len(word) != 2 or not all(isinstance(part, str) for part in word):
        raise ValueError(f"word_names.{name}: {word!r} is neither a word nor a pair [positive, negative] of words")
    return word[side]
