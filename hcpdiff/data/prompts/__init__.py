"""From a caption to a prompt: tags shuffled and dropped, choices made, templates filled.

A caption transform is any callable `(text, rng) -> str`, or one that makes a `Prompt` as `TemplateFill` does. Two more
methods are optional: `outcomes(text)` lists what it can give, or is None if that is endless or too much, so that a
cache of text knows what to hold; `finish(text) -> str` tidies the text after the last transform.
"""

from __future__ import annotations

from hcpdiff.data.prompts.chain import MOST_OUTCOMES, CaptionTransform, apply, outcomes
from hcpdiff.data.prompts.sentences import SentenceDropout
from hcpdiff.data.prompts.tags import TagDropout, TagErase, TagShuffle, split_tags
from hcpdiff.data.prompts.templates import TemplateFill, tidy
from hcpdiff.data.prompts.whole import CaptionDropout, Prefix, Suffix, Trigger
from hcpdiff.data.prompts.wildcards import Wildcards

__all__ = [
    "MOST_OUTCOMES",
    "CaptionDropout",
    "CaptionTransform",
    "Prefix",
    "SentenceDropout",
    "Suffix",
    "TagDropout",
    "TagErase",
    "TagShuffle",
    "TemplateFill",
    "Trigger",
    "Wildcards",
    "apply",
    "outcomes",
    "split_tags",
    "tidy",
]
