"""Prompts to token ids of one length. What does not fit is cut, and said once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def token_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int) -> Tensor:
    """(B, length) ids, padded or cut; a prompt that is cut is logged, the first time it is seen."""
    return ids_and_mask(tokenizer, prompts, length)[0]


def ids_and_mask(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """`token_ids`, and (B, length) with 0 where they only fill up, which they do at the end."""
    texts, size = list(prompts), {"padding": "max_length", "max_length": length, "truncation": True}
    encoded = tokenizer(texts, return_tensors="pt", padding_side="right", **size)
    for text, full in zip(texts, encoded.attention_mask[:, -1].tolist(), strict=True):
        if full and len(whole := tokenizer(text, verbose=False).input_ids) > length:
            warn_of_cut(text, f"{length} tokens", str(tokenizer.decode(whole[length - 1 : -1])).strip())
    return encoded.input_ids, encoded.attention_mask


@lru_cache(maxsize=10_000)
def warn_of_cut(prompt: str, limit: str, lost: str) -> None:
    """Log what a text encoder does not see of a prompt, once.

    Args:
        limit: what it can see, in words.
    """
    shown = prompt if len(prompt) <= 60 else prompt[:60] + "..."
    logger.warning("prompt %r is longer than %s; the text encoder does not see: %r", shown, limit, lost)
