"""Reading captions: text files beside the images, a table for all of them, or the names of the files."""

from __future__ import annotations

from hcpdiff.data.captions.names import stem
from hcpdiff.data.captions.readers import CaptionOption, FirstCaptions, caption_reader
from hcpdiff.data.captions.sidecars import CaptionReader, FilenameCaptions, SidecarCaptions, weights_of
from hcpdiff.data.captions.tables import TableCaptions

__all__ = [
    "CaptionOption",
    "CaptionReader",
    "FilenameCaptions",
    "FirstCaptions",
    "SidecarCaptions",
    "TableCaptions",
    "caption_reader",
    "stem",
    "weights_of",
]
