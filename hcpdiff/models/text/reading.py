"""How a family reads prompts: the settings that all families share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, get_args

Emphasis = Literal["none", "webui", "braces"]
Pooling = Literal["first", "mean"]


@dataclass(frozen=True)
class Reading:
    """How a family reads prompts.

    Args:
        emphasis: the signs that weigh words and part chunks: "webui", `(red:1.3) [sky] BREAK`, or "braces",
            `{red:1.3}`. "none" takes every sign as text, as captions want it: tags are full of brackets.
        chunks: of 75 tokens, for CLIP, and what is longer is cut. "auto" takes as many as the longest prompt of a batch
            needs and fills the others up with empty ones; so what a prompt means depends on the batch, conditionings
            do not stack, and it is for inference alone.
        pooling: of which chunk the pooled vector is: the "first", or the "mean" of those that have text.
    """

    emphasis: Emphasis = "none"
    chunks: int | Literal["auto"] = 1
    pooling: Pooling = "first"

    def __post_init__(self) -> None:
        for key, kind in (("emphasis", Emphasis), ("pooling", Pooling)):
            if (value := getattr(self, key)) not in get_args(kind):
                setting = "chunk_pooling" if key == "pooling" else key
                raise ValueError(f"{setting}: {value!r} is unknown; use {' or '.join(map(repr, get_args(kind)))}")
        whole = isinstance(self.chunks, int) and not isinstance(self.chunks, bool)
        if self.chunks != "auto" and not (whole and self.chunks >= 1):  # pyright: ignore[reportOperatorIssue]
            raise ValueError(f"chunks: {self.chunks!r} is no number of chunks; use 1 or more, or 'auto'")

    def __str__(self) -> str:
        return f"emphasis={self.emphasis} chunks={self.chunks} chunk_pooling={self.pooling}"

    def limit(self, length: int) -> int:
        """How many tokens of a text a CLIP of `length` tokens reads, those at its two ends included."""
        return sys.maxsize if self.chunks == "auto" else self.chunks * (length - 2) + 2

    def check_training(self) -> None:
        """Raise if prompts mean different things in different batches."""
        if self.chunks == "auto":
            raise ValueError("chunks: 'auto' depends on the batch, so nothing can be trained with it; use e.g. 3")
