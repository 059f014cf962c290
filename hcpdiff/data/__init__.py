"""Images and captions to batches: sources, captions, buckets, caches, and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.data.buckets import Assignment as Assignment
    from hcpdiff.data.buckets import Bucket as Bucket
    from hcpdiff.data.buckets import FixedBucket as FixedBucket
    from hcpdiff.data.buckets import RatioBucket as RatioBucket
    from hcpdiff.data.buckets import RatioGridBucket as RatioGridBucket
    from hcpdiff.data.dataset import Dataset as Dataset
    from hcpdiff.data.prompts import CaptionDropout as CaptionDropout
    from hcpdiff.data.prompts import TagDropout as TagDropout
    from hcpdiff.data.prompts import TagShuffle as TagShuffle
    from hcpdiff.data.prompts import TemplateFill as TemplateFill
    from hcpdiff.data.scan import BadFile as BadFile
    from hcpdiff.data.scenes import Scenes as Scenes
    from hcpdiff.data.sources.base import Record as Record
    from hcpdiff.data.sources.base import Source as Source
    from hcpdiff.data.sources.folder import FolderSource as FolderSource
    from hcpdiff.data.streams import Streams as Streams

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "Assignment": "hcpdiff.data.buckets:Assignment",
        "BadFile": "hcpdiff.data.scan:BadFile",
        "Bucket": "hcpdiff.data.buckets:Bucket",
        "CaptionDropout": "hcpdiff.data.prompts:CaptionDropout",
        "Dataset": "hcpdiff.data.dataset:Dataset",
        "FixedBucket": "hcpdiff.data.buckets:FixedBucket",
        "FolderSource": "hcpdiff.data.sources.folder:FolderSource",
        "RatioBucket": "hcpdiff.data.buckets:RatioBucket",
        "RatioGridBucket": "hcpdiff.data.buckets:RatioGridBucket",
        "Record": "hcpdiff.data.sources.base:Record",
        "Scenes": "hcpdiff.data.scenes:Scenes",
        "Source": "hcpdiff.data.sources.base:Source",
        "Streams": "hcpdiff.data.streams:Streams",
        "TagDropout": "hcpdiff.data.prompts:TagDropout",
        "TagShuffle": "hcpdiff.data.prompts:TagShuffle",
        "TemplateFill": "hcpdiff.data.prompts:TemplateFill",
    },
)
