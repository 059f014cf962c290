"""A tokenizer as T5 has it, which marks where words begin and has no token before the text."""

from __future__ import annotations

from typing import Any


def tiny_t5_tokenizer() -> Any:
    """Unigrams: letters, some words, and parts of words."""
    from transformers import T5Tokenizer

    letters = [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz,!()."]
    words = [("▁red", -1.0), ("▁a", -1.5), ("▁st", -1.0), ("ar", -1.0)]
    return T5Tokenizer(vocab=[("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -2), *letters, *words], extra_ids=0)
