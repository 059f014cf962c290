"""Prompts to token ids and weights, in as many chunks as a text encoder can read at once, and chunks to features."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hcpdiff.models.text.emphasis import Span, parse
from hcpdiff.models.text.reading import Emphasis, Pooling, Reading
from hcpdiff.models.text.tokenize import token_ids, warn_of_cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Chunk = tuple[list[int], list[float]]  # ids and weights, without those that mark its ends


@dataclass(frozen=True)
class Tokens:
    """What one text encoder reads."""

    ids: Tensor  # (B, n, L)
    weights: Tensor | None = None  # (B, n, L); None: all are 1
    filled: Tensor | None = None  # (B, n), whether there is text in a chunk; None: n is 1

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        moved = (None if tensor is None else tensor.to(device) for tensor in (self.weights, self.filled))
        return Tokens(self.ids.to(device), *moved)


def tokenize(
    tokenizers: Mapping[str, tuple[PreTrainedTokenizerBase, int]], prompts: Sequence[str], reading: Reading
) -> dict[str, Tokens]:
    """Prompts to chunks, as many for each text encoder. What is cut is logged once.

    Each chunk is framed and padded as the tokenizer does it with a short prompt. A prompt without weights in one chunk
    gives the tokenizer's own ids. Words of different weights are never one token.

    Args:
        tokenizers: {text encoder: (tokenizer, tokens in a chunk, those at its ends included)}
    """
    if reading.emphasis == "none" and reading.chunks == 1:
        return {name: Tokens(token_ids(t, prompts, length)[:, None]) for name, (t, length) in tokenizers.items()}
    rows = {name: _read(t, prompts, length, reading.emphasis) for name, (t, length) in tokenizers.items()}
    longest = max((len(chunks) for of_encoder in rows.values() for chunks in of_encoder), default=1)
    count = longest if reading.chunks == "auto" else reading.chunks
    return {name: _framed(*tokenizers[name], prompts, rows[name], count) for name in tokenizers}


def tokenize_whole(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int, reading: Reading) -> Tokens:
    """The same for an encoder that reads long texts at once, as T5: one chunk of `length`, and BREAK is a space."""
    if reading.emphasis == "none":
        return Tokens(token_ids(tokenizer, prompts, length)[:, None])
    rows = _read(tokenizer, prompts, length, reading.emphasis, breaks=False)
    return _framed(tokenizer, length, prompts, rows, 1)


def lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], reading: Reading) -> list[int]:
    """How many tokens each text has, those at its two ends included, its signs left out and nothing cut."""
    ends = len(tokenizer("").input_ids)
    part = partial(_encoded, tokenizer, emphasis=reading.emphasis, breaks=False)
    parts = (part(texts[start : start + 1000]) for start in range(0, len(texts), 1000))
    return [ends + sum(len(ids) for ids, _ in row) for rows in parts for row in rows]


def encode(
    tokens: Tokens, encoder: Callable[[Tensor], tuple[Tensor, Tensor]], *, pooling: Pooling = "first"
) -> tuple[Tensor, Tensor]:
    """Features of all chunks one after the other, (B, n * L, D), and the pooled vector, (B, P).

    Args:
        encoder: ids (B * n, L) to features (B * n, L, D) and pooled vectors (B * n, P).
    """
    batch, count, _ = tokens.ids.shape
    features, each = encoder(tokens.ids.flatten(0, 1))
    features = weighted(features, tokens.weights).reshape(batch, -1, features.shape[-1])
    each = each.unflatten(0, (batch, count))
    if pooling == "first" or tokens.filled is None:
        return features, each[:, 0]
    share = tokens.filled / tokens.filled.sum(1, keepdim=True)
    return features, (each * share[..., None].to(each.dtype)).sum(1)


def weighted(features: Tensor, weights: Tensor | None) -> Tensor:
    """Token features (B, L, D), each times its weight, then all of a row scaled so that their mean stays, as in webui.

    Means of features that cancel say little, so the scale stays within what weights can explain: 1 / the largest to
    1 / the smallest. A row whose weights are all 1 is not changed by a bit.

    Args:
        weights: (B, n, L) or (B, L), or None.
    """
    if weights is None:
        return features
    weights, full = weights.reshape(features.shape[:2]), features.float()
    changed = full * weights[..., None]
    scale = (full.mean((1, 2)) / changed.mean((1, 2))).nan_to_num(1.0)
    smallest, largest = weights.amin(1).clamp(0.1, 1), weights.amax(1).clamp(min=1)
    scale = scale.clamp(1 / largest, 1 / smallest)
    return (changed * scale[:, None, None]).to(features.dtype)


def _read(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int, emphasis: Emphasis, *, breaks: bool = True
) -> list[list[_Chunk]]:
    """The chunks that each prompt needs, one at least."""
    size = length - len(tokenizer("").input_ids)
    if size < 1:
        raise ValueError(f"{length} tokens hold no text besides those that mark its ends; use more")
    rows = []
    for parts in _encoded(tokenizer, prompts, emphasis=emphasis, breaks=breaks):
        chunks = [
            (ids[start : start + size], weights[start : start + size])
            for ids, weights in parts
            for start in range(0, max(1, len(ids)), size)
        ]
        while len(chunks) > 1 and not chunks[-1][0]:  # nothing follows the last BREAK
            chunks.pop()
        rows.append(chunks)
    return rows


def _encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, emphasis: Emphasis, breaks: bool
) -> list[list[_Chunk]]:
    """Ids and weights of each prompt's parts, without ends."""
    parsed = [[[Span(prompt)]] if emphasis == "none" else parse(prompt, emphasis) for prompt in prompts]
    if not breaks:
        parsed = [[[span for part in parts for span in (*part, Span(" "))][:-1]] for parts in parsed]
    spaced = [_spaced(part) for parts in parsed for part in parts]
    if not spaced:
        return []
    texts = ["".join(span.text for span in part) for part in spaced]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows = zip(encoded.input_ids, encoded.offset_mapping, spaced, strict=True)
    chunks = iter([(ids, _weights(offsets, part)) for ids, offsets, part in rows])
    return [list(islice(chunks, len(parts))) for parts in parsed]


def _spaced(part: Sequence[Span]) -> list[Span]:
    """Spans whose texts joined are tokenised as they are one by one: words that only a bracket parts get a space."""
    spaced: list[Span] = []
    for text, weight in part:
        met = spaced[-1].text[-1] + text[0] if spaced else " "
        alike = met[0].isalnum() == met[-1].isalnum() or met[0] == "'"  # CLIP knows 's and 't
        if alike and not (met[0].isspace() or met[-1].isspace()):
            spaced[-1] = Span(spaced[-1].text + " ", spaced[-1].weight)
        spaced.append(Span(text, weight))
    return spaced


def spans(prompt: str, emphasis: Emphasis) -> list[Span]:
    """A prompt for an encoder that reads all at once, without its signs: BREAK is a space."""
    if emphasis == "none":
        return [Span(prompt)]
    return _spaced([span for part in parse(prompt, emphasis) for span in (*part, Span(" "))][:-1])


def weights_within(offsets: Sequence[tuple[int, int]], prompt: Sequence[Span], start: int) -> list[float]:
    """Of each token of a text that has the prompt from `start` on; what is around it weighs 1."""
    length = sum(len(span.text) for span in prompt)
    around = [Span(" " * start), *prompt, Span(" ")]
    return _weights([(min(a, start + length), min(b, start + length + 1)) for a, b in offsets], around)


def _weights(offsets: Sequence[tuple[int, int]], part: Sequence[Span]) -> list[float]:
    """Of each token, by its last character: its first may be the space before the word."""
    if len(part) == 1:
        return [part[0].weight] * len(offsets)
    ends = list(accumulate(len(span.text) for span in part))
    return [part[bisect_right(ends, max(start, end - 1))].weight for start, end in offsets]


def _framed(
    tokenizer: PreTrainedTokenizerBase, length: int, prompts: Sequence[str], rows: Sequence[list[_Chunk]], count: int
) -> Tokens:
    """`count` chunks of each prompt with their ends, padded to `length`."""
    *start, end = tokenizer("").input_ids
    filler = tokenizer.pad_token_id
    ids, weights = [], []
    for prompt, chunks in zip(prompts, rows, strict=True):
        if lost := [token for cut, _ in chunks[count:] for token in cut]:
            limit = f"{length} tokens" if count == 1 else f"{count} chunks of {length} tokens"
            warn_of_cut(prompt, limit, str(tokenizer.decode(lost)).strip())
        kept = [*chunks[:count], *[([], [])] * (count - len(chunks))]
        rest = [length - len(start) - 1 - len(body) for body, _ in kept]
        ids.append([[*start, *body, end, *[filler] * n] for (body, _), n in zip(kept, rest, strict=True)])
        weights.append([[*[1.0] * len(start), *w, *[1.0] * (n + 1)] for (_, w), n in zip(kept, rest, strict=True)])
    some = torch.tensor([[i < max(1, len(chunks)) for i in range(count)] for chunks in rows])
    plain = all(w == 1 for row in weights for chunk in row for w in chunk)
    return Tokens(torch.tensor(ids), None if plain else torch.tensor(weights), some)
