"""Conditioning by prompt, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hcpdiff.data.cache import ALONE, Key, Team, content_key, fill
from hcpdiff.data.cache.shared import shared_table
from hcpdiff.types import Batch, Conditioning, Prompt

PromptEncoder = Callable[[Sequence[str]], Conditioning]


class CachedText:
    """The conditioning of a finite set of prompts.

    Args:
        folder: where the table lies; None: in memory.
        fingerprint: of all that decides a conditioning besides the text: weights, dtype and settings of the encoders.
        negatives: keep that of the negative prompts too.
        about: what encodes, in words.
        team: the processes that fill it together; each has all of it then.
    """

    def __init__(
        self,
        folder: Path | None,
        fingerprint: str,
        *,
        negatives: bool = False,
        about: str = "",
        team: Team = ALONE,
    ) -> None:
        path = None if folder is None else folder / "text" / content_key(fingerprint).hex()
        self.table, self._settled = shared_table(path, about, team)
        self.negatives = negatives
        self.team = team

    def fill(
        self,
        prompts: Iterable[Prompt],
        encode_prompt: PromptEncoder,
        *,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Encode what is missing, and say how many texts that were.

        Args:
            progress: called with how many texts are done, and how many there are to do.
        """
        texts = sorted(self.texts(prompts))
        keys = [content_key(text) for text in texts]

        def missing() -> list[list[str]]:
            found = self.table.find(keys).tolist()
            lacking = [text for text, number in zip(texts, found, strict=True) if number < 0]
            size = max(1, min(batch_size, len(lacking) // self.team.world_size))
            return [lacking[i : i + size] for i in range(0, len(lacking), size)]

        def work(parts: Sequence[list[str]]) -> Iterator[int]:
            done = 0
            for part in parts:
                self._add(part, encode_prompt)
                done += len(part)
                yield done

        count = sum(map(len, missing()))
        fill(self.table, missing, work, team=self.team, progress=progress)
        self._settled()
        return count

    def texts(self, prompts: Iterable[Prompt]) -> set[str]:
        """The texts whose conditioning is kept."""
        return {text for p in prompts for text in ((p.positive, p.negative) if self.negatives else (p.positive,))}

    def keys(self, prompts: Iterable[Prompt]) -> set[Key]:
        """Of the rows that these prompts need."""
        return {content_key(text) for text in self.texts(prompts)}

    def attach(self, batch: Batch) -> Batch:
        """The batch with the conditioning of its prompts."""
        positive = self.conditioning([prompt.positive for prompt in batch.prompts])
        negative = self.conditioning([prompt.negative for prompt in batch.prompts]) if self.negatives else None
        return replace(batch, positive=positive, negative=negative)

    def conditioning(self, texts: Sequence[str]) -> Conditioning:
        """Of a batch of texts. If all are equal, as negative prompts often are, the rows share their memory.

        Raises:
            KeyError: a text is not in the cache.
        """
        numbers: list[int] = self.table.find([content_key(text) for text in texts]).tolist()
        if min(numbers) < 0:
            raise KeyError(texts[numbers.index(-1)])
        names = self.table.fields_of(numbers[0])
        if numbers.count(numbers[0]) == len(numbers):
            row = {name: self.table.tensor(name, numbers[0]) for name in names}
            return _from_row({name: tensor.expand(len(numbers), *tensor.shape) for name, tensor in row.items()})
        return _from_row({name: self.table.stack(name, numbers) for name in names})

    def _add(self, texts: Sequence[str], encode_prompt: PromptEncoder) -> None:
        with torch.no_grad():
            conditioning = encode_prompt(texts)
        for text, one in zip(texts, conditioning.chunk(len(texts)), strict=True):
            self.table.add(content_key(text), _to_row(one))


def _to_row(one: Conditioning) -> dict[str, Tensor]:
    fields = {"tokens": one.tokens, "mask": one.mask, "pooled": one.pooled}
    fields |= {f"extras.{name}": tensor for name, tensor in one.extras.items()}
    return {name: tensor[0].contiguous() for name, tensor in fields.items() if tensor is not None}


def _from_row(fields: Mapping[str, Tensor]) -> Conditioning:
    return Conditioning(
        tokens=fields["tokens"],
        mask=fields.get("mask"),
        pooled=fields.get("pooled"),
        extras={name.removeprefix("extras."): value for name, value in fields.items() if name.startswith("extras.")},
    )
