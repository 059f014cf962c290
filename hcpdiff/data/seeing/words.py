"""What the captions of a dataset say: which are missing, which tags are common, which prompts are too long."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hcpdiff.data.scan import BadFile
from hcpdiff.data.seeing.summary import CAPTIONS_READ, spread

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

# Of texts, {encoder: (number of tokens of each text, how many the encoder sees)}.
CountTokens = Callable[[Sequence[str]], Mapping[str, tuple[Sequence[int], int]]]
PROSE = 4  # words between commas, in the middle: from here on captions are sentences, and their words are counted


@dataclass(frozen=True)
class Tokens:
    """How long the prompts are for one text encoder."""

    limit: int
    counts: np.ndarray  # of each prompt that was looked at
    cut: list[tuple[int, str, int]]  # (image, prompt, tokens) of those that are longer, the longest first


@dataclass(frozen=True)
class Words:
    """What was found in the captions."""

    asked: int  # images whose captions were read
    missing: list[int]  # images without a caption, if the prompts are made of captions
    several: int  # images with more than one caption
    tags: bool  # captions are lists of tags; else sentences, and `counts` counts their words
    counts: Counter[str]  # in how many images each is
    bad: list[BadFile]  # captions that cannot be read
    tokens: dict[str, Tokens] = field(default_factory=dict)

    @property
    def once(self) -> list[str]:
        """Tags or words that one image has."""
        return sorted(tag for tag, count in self.counts.items() if count == 1)


def read_words(dataset: Dataset, count_tokens: CountTokens | None = None, *, limit: int = CAPTIONS_READ) -> Words:
    """Read the captions, and count the tokens of the prompts of the first epoch.

    Args:
        count_tokens: of the model; None: prompts are not measured.
        limit: of more images than this, as many are looked at, evenly spread.
    """
    items, bad = spread(len(dataset.samples.items), limit).tolist(), list[BadFile]()
    captions = {item: dataset.samples.captions_or_none(item, bad) for item in items}
    read = {item: [text for text in texts if text.strip()] for item, texts in captions.items() if texts is not None}
    needed = uses_captions(dataset)
    tags = _are_tags(read)
    counts: Counter[str] = Counter()
    for texts in read.values():
        counts.update({piece for text in texts for piece in (split_tags(text) if tags else _words(text))})
    return Words(
        asked=len(items),
        missing=[item for item, texts in read.items() if not texts] if needed else [],
        several=sum(len(texts) > 1 for texts in read.values()),
        tags=tags,
        counts=counts,
        bad=bad,
        tokens={} if count_tokens is None else _tokens(dataset, count_tokens, limit),
    )


def uses_captions(dataset: Dataset) -> bool:
    """Whether prompts are made of captions at all: a template may leave them out."""
    probe = "hcpdiffprobe"
    drawn = (dataset.captioning.draw([probe], random.Random(seed)) for seed in range(64))
    return any(probe in prompt.positive or probe in prompt.negative for prompt in drawn)


def split_tags(text: str) -> list[str]:
    """The comma-separated tags of a caption."""
    return [tag for piece in re.split(r"[,\n]", text) if (tag := piece.strip())]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{3,}", text.lower())


def _are_tags(captions: Mapping[int, Sequence[str]]) -> bool:
    lengths = sorted(len(tag.split()) for texts in captions.values() for text in texts for tag in split_tags(text))
    return not lengths or lengths[len(lengths) // 2] <= PROSE


def _tokens(dataset: Dataset, count_tokens: CountTokens, limit: int) -> dict[str, Tokens]:
    samples = dataset.samples
    prompts: dict[str, int] = {}  # prompt -> the first image that has it
    for number in spread(len(samples), limit).tolist():
        item = int(samples.item_of[number])
        if samples.captions_or_none(item, []) is not None:
            prompt = samples.prompt(0, number)
            for text in filter(None, (prompt.positive, prompt.negative)):
                prompts.setdefault(text, item)
    found: dict[str, Tokens] = {}
    texts = list(prompts)
    for encoder, (counts, most) in (count_tokens(texts) if texts else {}).items():
        array = np.asarray(counts, dtype=np.int64)
        over = np.argsort(-array, kind="stable")[: int((array > most).sum())]
        cut = [(prompts[texts[i]], texts[i], int(array[i])) for i in over.tolist()]
        found[encoder] = Tokens(most, array, cut)
    return found
