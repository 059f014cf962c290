"""The `words` section of a config: words that the text encoders of a run learn, or read from files as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from hcpdiff.config.ranges import ExistingPath, Range
from hcpdiff.data.dataset import Dataset
from hcpdiff.data.streams import Datasets
from hcpdiff.models.family import ModelFamily
from hcpdiff.models.text.placeholders import check_name, check_new
from hcpdiff.models.text.words import Words, load_words, resized, vectors_of
from hcpdiff.plugins.targets import close_names
from hcpdiff.types import Prompt

log = logging.getLogger("hcpdiff.train")

File = Annotated[str, ExistingPath("file")]
_AT_ONCE = 256  # images whose prompts are searched together


@dataclass(frozen=True, kw_only=True)
class WordSpec:
    """One word of a config: what it starts from, and how it learns."""

    # `cat` is a copy of that word's vectors, `*[0.02, 2]` two vectors of noise with that standard deviation, and
    # `cat, *[0.02, 2], tail` one after the other; default: noise as strong as the text encoder's own words are
    init: str | None = None
    path: File | list[File] | None = None  # start from a file of any program instead; or from one for each text encoder
    # of how many vectors it is: of more that it starts from, the first are taken, and fewer are repeated in turn;
    # default: as many as it starts from, and of noise one
    vectors: Annotated[int, Range(ge=1)] | None = None
    encoders: list[str] | None = None  # text encoders that learn it, the others read its name; default: all
    lr: Annotated[float, Range(gt=0)] | None = None  # default: the optimizer's
    train: bool = True  # false reads the word in prompts and leaves it as it is

    def __post_init__(self) -> None:
        if self.init is not None and self.path is not None:
            raise ValueError("init: the word starts from the file in `path`; leave one of the two out")
        if not self.train and self.init is None and self.path is None:
            raise ValueError("train: a word that learns nothing and starts from nothing is noise; set path")
        if not self.train and self.lr is not None:
            raise ValueError("lr: it would do nothing, because train is false; remove one of them")
        if self.encoders == [] or self.path == []:
            raise ValueError(f"{'path' if self.path == [] else 'encoders'}: the list is empty; leave it out")


def check_names(words: Mapping[str, Any], plugins: Iterable[str] = ()) -> None:
    """Raise for what cannot be the name of a word, or of its file beside those of the run's plugins."""
    for word in words:
        check_name(word)
        if "/" in word or "\\" in word:
            raise ValueError(f"words.{word}: its file is called like it, so it can have no slash; use another name")
    files = {name.lower(): name for name in plugins}
    for word in words:
        if word.lower() in files:
            raise ValueError(
                f"words.{word}: the plugin {files[word.lower()]!r} has this name too, and both would be written to "
                f"{word}.safetensors; rename one of them"
            )


def attach_words(family: ModelFamily, specs: Mapping[str, WordSpec], *, seed: int) -> Words:
    """The words of a config, attached to the model. Those that learn have gradients.

    Raises:
        FileNotFoundError: a word's file is missing.
        ValueError: a name or a setting of a word does not fit the model.
    """
    check_names(specs)
    words = Words(family, {word: _vectors(family, word, spec, seed) for word, spec in specs.items()})
    for word, spec in specs.items():
        for parameter in words.of(word).values():
            parameter.requires_grad_(spec.train)
    return words.attach()


def word_groups(words: Words, specs: Mapping[str, WordSpec]) -> list[dict[str, Any]]:
    """What an optimizer trains, by word: {"params", "lr" (None: its own), "name"} each."""
    return [
        {"params": list(words.of(word).values()), "lr": specs[word].lr, "name": f"words.{word}"}
        for word in words.trained
    ]


def check_used(words: Words, datasets: Datasets, *, negatives: bool) -> None:
    """Raise for a word that no prompt of the run can have, as it would learn nothing.

    Where prompts are drawn from ever new ones, some of them are looked at, and a word that is in none is logged.

    Args:
        datasets: prepared.
        negatives: the run uses negative prompts too.

    Raises:
        ValueError: naming the words.
    """
    missing, certain = set(words.trained), True
    for dataset in datasets.values() if missing else ():
        if not isinstance(dataset, Dataset):  # a stream, whose prompts are not known before it is read
            certain = False
            continue
        for texts, all_of_them in _texts(dataset, negatives):
            certain = certain and all_of_them
            missing -= words.seen_in(texts)
            if not missing:
                return
    if not missing:
        return
    names = ", ".join(word for word in words.names if word in missing)
    kind, where = "prompt" if negatives else "positive prompt", ", ".join(f"data.{name}" for name in datasets)
    text = f"words.{names}: no {kind} of {where} "
    first = next(iter(missing))
    advice = (
        f"put it into the captions or a template, or set caption_transforms: [{{_target_: hcpdiff.data.Trigger, "
        f"words: {first!r}}}]"
    )
    if certain:
        raise ValueError(f"{text}has it, so it would learn nothing; {advice}")
    log.warning("%sthat was looked at has it; if none has, it learns nothing: %s", text, advice)


def _texts(dataset: Dataset, negatives: bool) -> Iterator[tuple[list[str], bool]]:
    """The texts of a dataset's prompts, some images at a time, and whether these are all that they can have."""
    count = len(dataset.samples.items)
    for start in range(0, count, _AT_ONCE):
        found = [dataset.samples.prompts_of(item) for item in range(start, min(start + _AT_ONCE, count))]
        prompts = set[Prompt]().union(*(possible for possible, _ in found))
        sides = [(p.positive, p.negative) if negatives else (p.positive,) for p in prompts]
        yield [text for texts in sides for text in texts], all(all_of_them for _, all_of_them in found)


def _vectors(family: Any, word: str, spec: WordSpec, seed: int) -> dict[str, Tensor]:
    """{text encoder: (n, D)} that a word starts from."""
    encoders = list(family.text_encoders) if spec.encoders is None else spec.encoders
    for name in encoders:
        if name not in family.text_encoders:
            known = list(family.text_encoders)
            has = close_names(name, known) or f"; it has {', '.join(known)}"
            raise ValueError(f"words.{word}.encoders: {name!r} is no text encoder of {type(family).__name__}{has}")
    if spec.path is None:
        for name in encoders:
            check_new(word, family.tokenizers[name], name)
        return {e: vectors_of(family, e, word, spec.init, seed=seed, count=spec.vectors) for e in encoders}
    read = {name: vectors.detach() for name, vectors in load_words(family, {word: spec.path}).of(word).items()}
    if spec.encoders is not None and (lacking := [name for name in encoders if name not in read]):
        raise ValueError(f"words.{word}.encoders: {spec.path} has no vectors for {lacking[0]}; leave that out")
    return {name: resized(vectors, spec.vectors) for name, vectors in read.items() if name in encoders}
