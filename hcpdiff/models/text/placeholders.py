"""Learned words in a tokenizer and a text encoder: new ids in place of a word, vectors in place of the ids."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PRIVATE = 0xF0000  # a plane of characters that no text has: one stands for each vector
_ATTRIBUTE = "learned_words"  # of a tokenizer: {word: number of vectors}
_VECTORS = "learned_vectors"  # of a text encoder: those that it reads, in the order of their ids


def check_name(word: object) -> None:
    """Raise for what cannot be a word at all."""
    if not isinstance(word, str):
        raise ValueError(f"words: {word!r} is not text; write it in quotes")
    if not word or re.search(r"[\s,]", word):
        raise ValueError(f"words: {word!r} is no name of a word; use one without spaces and commas, e.g. 'my-cat'")


def check_free(word: str, tokenizer: Any) -> None:
    """Raise unless a tokenizer can learn this word."""
    check_name(word)
    if word.lower() in {known.lower() for known in learned_words(tokenizer)}:
        raise ValueError(f"words.{word}: the model has a learned word of this name already; use another")
    if not tokenizer.is_fast:
        raise ValueError(
            f"words.{word}: {type(tokenizer).__name__} cannot learn words; use a tokenizer with a tokenizer.json"
        )


def check_new(word: str, tokenizer: Any, where: str) -> None:
    """Raise if a tokenizer has this word as one of its own: a prompt that means it would mean the learned one."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        raise ValueError(
            f"words.{word}: {where} knows this word already, and what it means there would be lost; use another name, "
            f"e.g. 'my-{word}'"
        )


def learned_words(tokenizer: Any) -> dict[str, int]:
    """How many vectors each learned word of a tokenizer has, in the order of their ids."""
    return dict(getattr(tokenizer, _ATTRIBUTE, {}))


def learned_vectors(encoder: nn.Module) -> list[Tensor]:
    """What a text encoder reads learned words as, each (n, D), in the order of their ids."""
    return list(getattr(encoder, _VECTORS, ()))


def first_new_id(tokenizer: Any) -> int:
    """The first id that a learned word of this tokenizer has, or the next would have."""
    return len(tokenizer) - sum(learned_words(tokenizer).values())


def with_words(tokenizer: Any, counts: Mapping[str, int]) -> Any:
    """A copy of a tokenizer that gives for each word as many new ids as it has vectors, from len(tokenizer) on.

    A word is found whatever its case, and not within another. What `save_pretrained` writes knows nothing of them.
    """
    from tokenizers import Regex, normalizers

    learned = copy.deepcopy(tokenizer)
    known = learned_words(tokenizer)
    used, signs, found = sum(known.values()), [], {}
    for word, count in counts.items():
        found[word] = "".join(chr(_PRIVATE + used + len(signs) + i) for i in range(count))
        signs += found[word]
    # A word may be part of another: the longer ones are replaced first.
    replaced = [normalizers.Replace(Regex(_pattern(w)), found[w]) for w in sorted(found, key=len, reverse=True)]
    backend = learned.backend_tokenizer
    backend.normalizer = normalizers.Sequence([*replaced, *([backend.normalizer] if backend.normalizer else [])])
    learned.add_tokens(signs)
    setattr(learned, _ATTRIBUTE, {**known, **counts})
    learned.save_pretrained = tokenizer.save_pretrained
    return learned


def _pattern(word: str) -> str:
    before = r"(?<![\p{L}\p{N}_])" if re.match(r"\w", word) else ""
    after = r"(?![\p{L}\p{N}_])" if re.search(r"\w$", word) else ""
    return f"(?i){before}{re.escape(word)}{after}"


def substitute(encoder: Any, vectors: Sequence[Tensor], first: int) -> Callable[[], None]:
    """Let a text encoder read the ids from `first` on as these vectors, each (n, D); gradients reach them.

    The encoder itself is shown id 0 instead: it has no embedding for new ids, and old CLIPs look for the end of a text
    by the largest id. Its embeddings are not touched.

    Returns:
        what undoes it.
    """
    count = sum(map(len, vectors))
    places: list[tuple[Tensor, Tensor]] = []  # of the forward that is under way: where, and which vectors

    def hide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else kwargs["input_ids"]
        here = (ids >= first) & (ids < first + count)
        places[:] = [(here, (ids - first).clamp(0, count - 1))]
        shown = ids.masked_fill(here, 0)
        return ((shown, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": shown})

    def show(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        here, which = places.pop()
        return torch.where(here[..., None], torch.cat(list(vectors)).to(output)[which], output)

    # T5 looks tokens up in a module of its own that shares the weight.
    weight = encoder.get_input_embeddings().weight
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Embedding) and layer.weight is weight]
    handles = [encoder.register_forward_pre_hook(hide, with_kwargs=True)]
    handles += [layer.register_forward_hook(show) for layer in layers]
    before = learned_vectors(encoder)
    setattr(encoder, _VECTORS, [*before, *vectors])

    def undo() -> None:
        setattr(encoder, _VECTORS, before)
        for handle in handles:
            handle.remove()

    return undo
