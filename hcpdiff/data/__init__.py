"""Images and captions to batches: sources, captions, buckets, caches, and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.data.buckets import Assignment, Bucket, FixedBucket, RatioBucket, RatioGridBucket
    from hcpdiff.data.dataset import Dataset
    from hcpdiff.data.prompts import CaptionDropout, TagDropout, TagShuffle, TemplateFill
    from hcpdiff.data.scan import BadFile
    from hcpdiff.data.scenes import Scenes
    from hcpdiff.data.sources import FolderSource, Record, Source
    from hcpdiff.data.streams import Streams

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "Assignment": "hcpdiff.data.buckets:Assignment",
        "BadFile": "hcpdiff.data.scan:BadFile",
        "Bucket": "hcpdiff.data.buckets:Bucket",
        "CaptionDropout": "hcpdiff.data.prompts:CaptionDropout",
        "Dataset": "hcpdiff.data.dataset:Dataset",
        "FixedBucket": "hcpdiff.data.buckets:FixedBucket",
        "FolderSource": "hcpdiff.data.sources:FolderSource",
        "RatioBucket": "hcpdiff.data.buckets:RatioBucket",
        "RatioGridBucket": "hcpdiff.data.buckets:RatioGridBucket",
        "Record": "hcpdiff.data.sources:Record",
        "Scenes": "hcpdiff.data.scenes:Scenes",
        "Source": "hcpdiff.data.sources:Source",
        "Streams": "hcpdiff.data.streams:Streams",
        "TagDropout": "hcpdiff.data.prompts:TagDropout",
        "TagShuffle": "hcpdiff.data.prompts:TagShuffle",
        "TemplateFill": "hcpdiff.data.prompts:TemplateFill",
    },
)
