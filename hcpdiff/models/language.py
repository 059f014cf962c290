"""Families whose prompts are read by a language model, as what a user says in a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hcpdiff.diffusion.process import FlowMatching
from hcpdiff.models.folder import ModelFolder
from hcpdiff.models.pretrained import PretrainedFamily
from hcpdiff.models.text import chunks as chunked
from hcpdiff.models.text.tokenize import ids_and_mask

_PROMPT = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the prompt, to see where the chat has it


class LanguageFamily(PretrainedFamily):
    """A flow model with one text encoder, "qwen", whose states are padded at the end and masked there.

    Args:
        args: those of `PretrainedFamily`: denoiser, text encoders, tokenizers, VAE.
        text_tokens: how many tokens the denoiser gets at most, those of the chat around the prompt included.
        scheduler: settings of the stock scheduler, which set the default steps of sampling; None is `stock_scheduler`.
    """

    unseen: ClassVar[int] = 0  # tokens at the start of the chat that the denoiser does not get

    def __init__(
        self, *args: Any, text_tokens: int = 512, scheduler: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, process=FlowMatching(), scheduler=scheduler or self.stock_scheduler, **kwargs)
        if text_tokens < 1:
            raise ValueError(f"text_tokens: {text_tokens} is no number of tokens; use 1 or more, usually 512")
        self.text_tokens = text_tokens

    @classmethod
    def _limit(cls, name: str, files: ModelFolder, given: Mapping[str, Any]) -> int | None:
        return cls.unseen + given["text_tokens"]

    @property
    def text_settings(self) -> str:
        return f"text_tokens={self.text_tokens} {self.reading}"

    def _chat(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids (B, L) of the whole chats, 0 in (B, L) where they only fill up, and weights (B, L) or None: all are 1."""
        tokenizer, length = self.tokenizers["qwen"], self.unseen + self.text_tokens
        spans = [chunked.spans(prompt, self.reading.emphasis) for prompt in prompts]
        told = self._told(["".join(span.text for span in own) for own in spans], tokenizer, self.reading)
        device = next(self.text_encoders["qwen"].parameters()).device
        ids, mask = (x.to(device) for x in ids_and_mask(tokenizer, told, length))
        if all(span.weight == 1 for own in spans for span in own):
            return ids, mask, None
        start = self._told([_PROMPT], tokenizer, self.reading)[0].index(_PROMPT)
        weights = torch.ones(ids.shape)
        for row, (text, own) in enumerate(zip(told, spans, strict=True)):
            offsets = tokenizer(text, return_offsets_mapping=True, verbose=False).offset_mapping[:length]
            weights[row, : len(offsets)] = torch.tensor(chunked.weights_within(offsets, own, start))
        return ids, mask, weights.to(device)
