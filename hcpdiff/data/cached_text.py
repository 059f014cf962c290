"""Conditioning by prompt, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hcpdiff.data.cache import Table, content_key
from hcpdiff.types import Batch, Conditioning, Prompt

PromptEncoder = Callable[[Sequence[str]], Conditioning]


class CachedText:
    """The conditioning of a finite set of prompts.

    Args:
        folder: where the table lies; None: in memory.
        fingerprint: of all that decides a conditioning besides the text: weights, dtype and settings of the encoders.
        negatives: keep that of the negative prompts too.
    """

    def __init__(self, folder: Path | None, fingerprint: str, *, negatives: bool = False) -> None:
        self.table = Table(None if folder is None else folder / "text" / content_key(fingerprint))
        self.negatives = negatives

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
        texts = {text for p in prompts for text in ((p.positive, p.negative) if self.negatives else (p.positive,))}
        missing = [text for text in sorted(texts) if content_key(text) not in self.table]
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            with torch.no_grad():
                conditioning = encode_prompt(part)
            for text, one in zip(part, conditioning.chunk(len(part)), strict=True):
                self.table.add(content_key(text), _to_row(one))
            if progress is not None:
                progress(start + len(part), len(missing))
        self.table.flush()
        return len(missing)

    def attach(self, batch: Batch) -> Batch:
        """The batch with the conditioning of its prompts."""
        positive = self.conditioning([prompt.positive for prompt in batch.prompts])
        negative = self.conditioning([prompt.negative for prompt in batch.prompts]) if self.negatives else None
        return replace(batch, positive=positive, negative=negative)

    def conditioning(self, texts: Sequence[str]) -> Conditioning:
        """Of a batch of texts. If all are equal, as negative prompts often are, the rows share their memory."""
        keys = [content_key(text) for text in texts]
        if len(set(keys)) == 1:
            row = self.table.row(keys[0])
            return _from_row({name: tensor.expand(len(keys), *tensor.shape) for name, tensor in row.items()})
        return _from_row({name: self.table.column(name, keys) for name in self.table.fields(keys[0])})


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
