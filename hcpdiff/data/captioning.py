"""How a dataset makes prompts of its captions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hcpdiff.data.prompts import CaptionDropout, CaptionTransform, TemplateFill, apply, outcomes
from hcpdiff.types import Prompt


class Captioning:
    """Caption transforms, then the template, then dropout of the whole prompt; see `Dataset` for the arguments."""

    def __init__(
        self,
        transforms: Sequence[CaptionTransform] = (),
        template: str | Path | Sequence[str] | None = None,
        word_names: Mapping[str, str | Sequence[str]] | None = None,
        prompt_dropout: float = 0.0,
    ) -> None:
        if template is None and word_names:
            raise ValueError(
                "word_names: they fill a template, and there is none; set template, or leave word_names out"
            )
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"prompt_dropout: {prompt_dropout} is no probability; use a number from 0 to 1")
        self.transforms = list(transforms)
        if template is not None:
            if any(isinstance(transform, TemplateFill) for transform in transforms):
                raise ValueError("template: caption_transforms fill a template already; leave one of the two out")
            self.transforms.append(TemplateFill(template, word_names))
        if prompt_dropout:
            self.transforms.append(CaptionDropout(prompt_dropout))

    @property
    def unfilled(self) -> str:
        """What the templates ask for and nothing fills, in words; "" if there is nothing to say."""
        fills = [transform for transform in self.transforms if isinstance(transform, TemplateFill)]
        names = ", ".join(f"{{{name}}}" for fill in fills for name in fill.missing)
        return names and f"word_names has no entry for {names}, so the templates get nothing there"

    def draw(self, captions: Sequence[str], rng: random.Random) -> Prompt:
        """A prompt for an image with these captions."""
        caption = captions[0] if len(captions) == 1 else rng.choice(captions) if captions else ""
        return apply(self.transforms, caption, rng)

    def outcomes(self, captions: Iterable[str]) -> set[Prompt] | None:
        """All prompts that it can draw; None if they are endless, or a transform does not tell."""
        return outcomes(self.transforms, list(captions) or [""])

    def only(self, captions: Sequence[str]) -> Prompt | None:
        """The prompt, if it can draw no other."""
        options = self.outcomes(captions)
        return options.pop() if options is not None and len(options) == 1 else None
