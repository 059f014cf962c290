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
        fills = sum(isinstance(transform, TemplateFill) for transform in transforms)
        if template is None and word_names:
            raise ValueError(
                "word_names: they fill a template, and there is none; set template, or leave word_names out"
            )
        if template is not None and fills:
            raise ValueError("template: caption_transforms fill a template already; leave one of the two out")
        if fills > 1:
            raise ValueError("caption_transforms: only one of them may fill templates")
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"prompt_dropout: {prompt_dropout} is no probability; use a number from 0 to 1")
        self.transforms = list(transforms)
        if template is not None:
            self.transforms.append(TemplateFill(template, word_names))
        if prompt_dropout:
            self.transforms.append(CaptionDropout(prompt_dropout))

    @property
    def unfilled(self) -> str:
        """What templates and words do not have of each other, in words; "" if there is nothing to say."""
        fills = [transform for transform in self.transforms if isinstance(transform, TemplateFill)]
        missing = ", ".join(f"{{{name}}}" for fill in fills for name in fill.missing)
        unused = ", ".join(f"{{{name}}}" for fill in fills for name in fill.unused)
        notes = [
            missing and f"word_names has no entry for {missing}, so the templates get nothing there",
            unused and f"no template has {unused}, so these word_names go nowhere",
        ]
        return "; ".join(note for note in notes if note)

    def draw(self, captions: Sequence[str], rng: random.Random, weights: Sequence[float] | None = None) -> Prompt:
        """A prompt for an image with these captions.

        Args:
            captions: of which one is drawn; none is an empty one.
            rng: decides; equal ones draw equal prompts.
            weights: how often each caption is drawn, relative to the others; None: all equally often.
        """
        if weights is not None:
            _check_weights(captions, weights)
        if len(captions) < 2:
            caption = captions[0] if captions else ""
        elif weights is None:
            caption = rng.choice(captions)
        else:
            caption = rng.choices(captions, weights)[0]
        return apply(self.transforms, caption, rng)

    def outcomes(self, captions: Iterable[str]) -> set[Prompt] | None:
        """All prompts that it can draw; None if they are endless or very many, or a transform does not tell."""
        return outcomes(self.transforms, list(captions) or [""])

    def only(self, captions: Sequence[str]) -> Prompt | None:
        """The prompt, if it can draw no other."""
        options = self.outcomes(captions)
        return options.pop() if options is not None and len(options) == 1 else None


def _check_weights(captions: Sequence[str], weights: Sequence[float]) -> None:
    if len(weights) != len(captions):
        raise ValueError(f"captions: {len(captions)} captions have {len(weights)} weights; give each caption one")
    if len(weights) and not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise ValueError(f"captions: weights {list(weights)} cannot be drawn by; use numbers of 0 or more, not all 0")
