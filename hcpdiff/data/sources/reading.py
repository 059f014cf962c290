"""What a table, archive or pair of folders names as an image: a file, or the bytes of one."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from hcpdiff.data.images.headers import image_size
from hcpdiff.data.images.reading import read_grey, read_rgb, read_size
from hcpdiff.data.index import hash_file
from hcpdiff.data.sources.base import Record, Stamps
from hcpdiff.data.sources.folder import mask_weights

Content = Path | bytes
MaskScale = Literal["linear", "boost"]


@dataclass(frozen=True)
class Parts:
    """All that belongs to one example, not yet decoded."""

    image: Content
    loss_mask: Content | None = None
    inputs: Mapping[str, Content] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How examples are decoded.

    Args:
        background: RGB colour under transparent images.
        mask_scale: see `FolderSource`.
    """

    background: Sequence[int] = (255, 255, 255)
    mask_scale: MaskScale = "linear"

    def __post_init__(self) -> None:
        if self.mask_scale not in ("linear", "boost"):
            raise ValueError(f"mask_scale: {self.mask_scale!r} is unknown; use 'linear' or 'boost'")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background: {list(self.background)} is no RGB colour; use three numbers from 0 to 255")

    def load(self, parts: Parts, at_least: tuple[int, int] | None = None) -> Record:
        """Decode an example; it may come out smaller than it is, but not below `at_least` (height, width)."""
        red, green, blue = (int(value) for value in self.background)
        record = Record(read_rgb(opened(parts.image), background=(red, green, blue), at_least=at_least))
        for name, content in parts.inputs.items():
            record.inputs[name] = read_rgb(opened(content), at_least=at_least)
        if parts.loss_mask is not None:
            record.loss_mask = mask_weights(read_grey(opened(parts.loss_mask)), self.mask_scale)
        return record

    def fingerprint(self, parts: Parts, hash_path: Callable[[str], str]) -> str:
        """Hash of all that `load` gives for this example, whatever the files are called.

        Args:
            parts: of the example.
            hash_path: hash of a file's content by its absolute path, e.g. `FileIndex.fingerprint`.
        """
        scale = None if parts.loss_mask is None else self.mask_scale
        contents = [parts.image, *(parts.inputs[name] for name in sorted(parts.inputs)), parts.loss_mask]
        hashes = [
            hashlib.blake2b(content, digest_size=16).hexdigest()
            if isinstance(content, bytes)
            else hash_path(os.path.abspath(content))
            for content in contents
            if content is not None
        ]
        settings = tuple(self.background), scale, sorted(parts.inputs), hashes
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()


def hash_path(path: str) -> str:
    """Of a file's content, without an index."""
    return hash_file(path).hex()


def stamps_of(paths: Iterable[str | Path]) -> Stamps:
    """Of files, in one look at each; those that are not there are looked at again by whoever reads them."""
    names: list[str] = []
    stamps = array("q")
    for path in paths:
        names.append(os.path.abspath(path))
        try:
            stat = os.stat(path)
            stamps.extend((stat.st_mtime_ns, stat.st_size))
        except OSError:
            stamps.extend((0, -1))
    table = np.array(stamps, dtype=np.int64).reshape(-1, 2)
    return Stamps(names, table[:, 0], table[:, 1])


def opened(content: Content) -> Any:
    """What Pillow can open: a path, or a file in memory."""
    return io.BytesIO(content) if isinstance(content, bytes) else content


def size_of(content: Content) -> tuple[int, int]:
    """(height, width) of the upright image, from its header."""
    return read_size(io.BytesIO(content)) if isinstance(content, bytes) else image_size(content)


def check_shape(image: Image.Image | None, said: tuple[int, int], who: str) -> None:
    """Stop if an image has another shape than is said of it, as it would be squeezed (2 % is rounding).

    Raises:
        ValueError: it has; the message names both sizes.
    """
    if image is not None and abs(image.width * said[0] / (image.height * said[1]) - 1) > 0.02:
        raise ValueError(
            f"{who} says it is {said[0]} high and {said[1]} wide, the file is {image.height} x {image.width}"
        )


def require(wanted: Iterable[str], known: Iterable[str], what: str, where: str, key: str) -> None:
    """Stop if a name is not among the known ones.

    Args:
        wanted: names that the user gave.
        known: those that are there.
        what: they are called, e.g. "column".
        where: they are, for the message.
        key: of the config, that the message begins with.

    Raises:
        ValueError: one is missing; the message names those that are there, and one that is close.
    """
    names = list(known)
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, cutoff=0.6)
            guess = f"; did you mean {near[0]!r}?" if near else "."
            shown = ", ".join(map(repr, names[:30])) + (" ..." if len(names) > 30 else "")
            raise ValueError(f"{key}: no {what} {name!r} in {where}{guess} It has {shown or 'none'}")


def names_of(option: str | Sequence[str] | None) -> list[str]:
    """A name, a list of names or none of them, as a list."""
    return [] if option is None else [option] if isinstance(option, str) else list(option)


def captions_of(cell: object, where: str) -> list[str]:
    """A text, a list of texts or nothing, as a list without empty ones.

    Raises:
        ValueError: it is something else.
    """
    texts = [] if cell is None else [cell] if isinstance(cell, str) else cell
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {cell!r} is no caption; use a text or a list of texts")
    return [text.strip() for text in texts if text.strip()]
