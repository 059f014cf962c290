"""Images and captions to batches: sources, captions, buckets, caches, and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.data.buckets import Assignment as Assignment
    from hcpdiff.data.buckets import Bucket as Bucket
    from hcpdiff.data.buckets import FixedBucket as FixedBucket
    from hcpdiff.data.buckets import LongEdgeBucket as LongEdgeBucket
    from hcpdiff.data.buckets import RatioBucket as RatioBucket
    from hcpdiff.data.buckets import RatioGridBucket as RatioGridBucket
    from hcpdiff.data.buckets import RatioSizeBucket as RatioSizeBucket
    from hcpdiff.data.buckets import SizeBucket as SizeBucket
    from hcpdiff.data.captions import FilenameCaptions as FilenameCaptions
    from hcpdiff.data.captions import FirstCaptions as FirstCaptions
    from hcpdiff.data.captions import SidecarCaptions as SidecarCaptions
    from hcpdiff.data.captions import TableCaptions as TableCaptions
    from hcpdiff.data.dataset import Dataset as Dataset
    from hcpdiff.data.prompts import CaptionDropout as CaptionDropout
    from hcpdiff.data.prompts import Prefix as Prefix
    from hcpdiff.data.prompts import SentenceDropout as SentenceDropout
    from hcpdiff.data.prompts import Suffix as Suffix
    from hcpdiff.data.prompts import TagDropout as TagDropout
    from hcpdiff.data.prompts import TagErase as TagErase
    from hcpdiff.data.prompts import TagShuffle as TagShuffle
    from hcpdiff.data.prompts import TemplateFill as TemplateFill
    from hcpdiff.data.prompts import Trigger as Trigger
    from hcpdiff.data.prompts import Wildcards as Wildcards
    from hcpdiff.data.scan import BadFile as BadFile
    from hcpdiff.data.sources.base import Record as Record
    from hcpdiff.data.sources.base import Source as Source
    from hcpdiff.data.sources.class_folder import ClassFolderSource as ClassFolderSource
    from hcpdiff.data.sources.folder import FolderSource as FolderSource
    from hcpdiff.data.sources.huggingface import HuggingFaceSource as HuggingFaceSource
    from hcpdiff.data.sources.pairs import PairSource as PairSource
    from hcpdiff.data.sources.prompts import PromptSource as PromptSource
    from hcpdiff.data.sources.scenes import Scenes as Scenes
    from hcpdiff.data.sources.streamed import HuggingFaceStream as HuggingFaceStream
    from hcpdiff.data.sources.streamed import StreamItem as StreamItem
    from hcpdiff.data.sources.streamed import StreamSource as StreamSource
    from hcpdiff.data.sources.streamed import TarStream as TarStream
    from hcpdiff.data.sources.table import TableSource as TableSource
    from hcpdiff.data.sources.webdataset import WebDatasetSource as WebDatasetSource
    from hcpdiff.data.streaming.dataset import StreamDataset as StreamDataset
    from hcpdiff.data.streams import Streams as Streams

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "Assignment": "hcpdiff.data.buckets:Assignment",
        "BadFile": "hcpdiff.data.scan:BadFile",
        "Bucket": "hcpdiff.data.buckets:Bucket",
        "CaptionDropout": "hcpdiff.data.prompts:CaptionDropout",
        "ClassFolderSource": "hcpdiff.data.sources.class_folder:ClassFolderSource",
        "Dataset": "hcpdiff.data.dataset:Dataset",
        "FilenameCaptions": "hcpdiff.data.captions:FilenameCaptions",
        "FirstCaptions": "hcpdiff.data.captions:FirstCaptions",
        "FixedBucket": "hcpdiff.data.buckets:FixedBucket",
        "FolderSource": "hcpdiff.data.sources.folder:FolderSource",
        "HuggingFaceSource": "hcpdiff.data.sources.huggingface:HuggingFaceSource",
        "HuggingFaceStream": "hcpdiff.data.sources.streamed:HuggingFaceStream",
        "LongEdgeBucket": "hcpdiff.data.buckets:LongEdgeBucket",
        "PairSource": "hcpdiff.data.sources.pairs:PairSource",
        "Prefix": "hcpdiff.data.prompts:Prefix",
        "PromptSource": "hcpdiff.data.sources.prompts:PromptSource",
        "RatioBucket": "hcpdiff.data.buckets:RatioBucket",
        "RatioGridBucket": "hcpdiff.data.buckets:RatioGridBucket",
        "RatioSizeBucket": "hcpdiff.data.buckets:RatioSizeBucket",
        "Record": "hcpdiff.data.sources.base:Record",
        "Scenes": "hcpdiff.data.sources.scenes:Scenes",
        "SentenceDropout": "hcpdiff.data.prompts:SentenceDropout",
        "SidecarCaptions": "hcpdiff.data.captions:SidecarCaptions",
        "SizeBucket": "hcpdiff.data.buckets:SizeBucket",
        "Source": "hcpdiff.data.sources.base:Source",
        "StreamDataset": "hcpdiff.data.streaming.dataset:StreamDataset",
        "StreamItem": "hcpdiff.data.sources.streamed:StreamItem",
        "StreamSource": "hcpdiff.data.sources.streamed:StreamSource",
        "Streams": "hcpdiff.data.streams:Streams",
        "Suffix": "hcpdiff.data.prompts:Suffix",
        "TableCaptions": "hcpdiff.data.captions:TableCaptions",
        "TableSource": "hcpdiff.data.sources.table:TableSource",
        "TagDropout": "hcpdiff.data.prompts:TagDropout",
        "TagErase": "hcpdiff.data.prompts:TagErase",
        "TagShuffle": "hcpdiff.data.prompts:TagShuffle",
        "TarStream": "hcpdiff.data.sources.streamed:TarStream",
        "TemplateFill": "hcpdiff.data.prompts:TemplateFill",
        "Trigger": "hcpdiff.data.prompts:Trigger",
        "WebDatasetSource": "hcpdiff.data.sources.webdataset:WebDatasetSource",
        "Wildcards": "hcpdiff.data.prompts:Wildcards",
    },
)
