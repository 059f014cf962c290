"""Images and captions in tar archives."""

from __future__ import annotations

import io
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from hcpdiff.config.ranges import positive
from hcpdiff.data.images.reading import SUFFIXES, read_size
from hcpdiff.data.sources.base import Record, Stamps
from hcpdiff.data.sources.cells import Cells
from hcpdiff.data.sources.folder import check_repeat
from hcpdiff.data.sources.reading import MaskScale, Parts, Reading, captions_of, hash_path, names_of, require
from hcpdiff.data.sources.shards import Members, Section, members, read_member, shard_paths, split_name


class Layout:
    """Which members of a sample are what; see `WebDatasetSource` for the arguments."""

    def __init__(
        self,
        image: str | Sequence[str] | None = None,
        caption: str | Sequence[str] | None = "txt",
        loss_mask: str | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.images = [name.lower().lstrip(".") for name in names_of(image)] or sorted(s[1:] for s in SUFFIXES)
        self.captions = [_member_and_key(option) for option in names_of(caption)]
        self.loss_mask = loss_mask
        self.inputs = dict(inputs or {})
        others = [member for member, _ in self.captions] + names_of(loss_mask) + list(self.inputs.values())
        self.roles = list(dict.fromkeys(others))  # the members besides the image, in the order of their columns

    def column(self, member: str) -> int | None:
        """Where the place of a member is noted: 0 is the image; None: it is not wanted."""
        if member in self.roles:
            return 1 + self.roles.index(member)
        return 0 if member in self.images else None

    def parts(self, path: Path, places: np.ndarray) -> Parts:
        """The images of a sample, read."""
        mask = None if self.loss_mask is None else self._read(path, places, self.loss_mask)
        inputs = {}
        for name, member in self.inputs.items():
            content = self._read(path, places, member)
            if content is None:
                raise ValueError(f"it has no member {member}")
            inputs[name] = content
        return Parts(read_member(path, places[0]), mask, inputs)

    def texts(self, path: Path, places: np.ndarray, key: str) -> list[str]:
        """The captions of a sample."""
        found: list[str] = []
        for member, field in self.captions:
            data = self._read(path, places, member)
            if data is not None:
                text = data.decode("utf-8-sig")
                found += captions_of(text if field is None else json.loads(text).get(field), f"{key}.{member}")
        return found

    def _read(self, path: Path, places: np.ndarray, member: str) -> bytes | None:
        place = places[1 + self.roles.index(member)]
        return None if place[1] < 0 else read_member(path, place)


@dataclass(frozen=True)
class Samples:
    """The samples of one archive that have an image, in its order."""

    keys: Cells
    places: np.ndarray  # (N, 1 + roles, 2) int64: offset and size of the image and of each role; -1: it has none
    seen: set[str]  # the members that there are


def find_samples(archive: Members, layout: Layout, path: Path) -> Samples:
    """Group the members of an archive.

    Raises:
        ValueError: a sample has two members of one name, or two images.
    """
    numbers: dict[str, int] = {}
    places = array("q")
    seen: set[str] = set()
    blank = array("q", [-1, -1] * (1 + len(layout.roles)))
    for name, place in zip(archive.names, archive.places, strict=True):
        sample, member = split_name(name)
        column = layout.column(member) if sample else None
        if sample:
            seen.add(member)
        if column is None:
            continue
        number = numbers.setdefault(sample, len(numbers))
        if (number + 1) * len(blank) > len(places):
            places.extend(blank)
        at = number * len(blank) + 2 * column
        if places[at] >= 0:
            what = "images" if column == 0 else f"members {member}"
            raise ValueError(f"shards: {path}: sample {sample} has two {what}; keep one, or set image to its suffix")
        places[at], places[at + 1] = int(place[0]), int(place[1])
    table = np.array(places, dtype=np.int64).reshape(-1, 1 + len(layout.roles), 2)
    has_image = table[:, 0, 1] >= 0
    return Samples(Cells(name for name, there in zip(numbers, has_image, strict=True) if there), table[has_image], seen)


class WebDatasetSource:
    """The samples of local .tar archives, in any order, without unpacking them.

        source: {_target_: hcpdiff.data.WebDatasetSource, shards: "data/cats-{000..010}.tar", caption: json:caption}

    The members of a sample share their name up to the first dot: `0001.jpg`, `0001.txt`, `0001.mask.png`.

    Args:
        shards: a path, one with braces or *, or a list of these.
        image: member that is the image, e.g. "jpg", or a list of them; by default that with the suffix of an image.
        caption: member that is the caption, or "json:key" for a text, or list of texts, in a JSON member; a list for
            several. None: no captions.
        loss_mask: member that is a grey image, e.g. "mask.png"; a sample without one counts fully.
        inputs: {name: member} of condition images, e.g. {control_image: edges.png}; they are cut like the image.
        index: folder where the places of all members are kept, so that the next run need not look for them.
        mask_scale, background: see `FolderSource`.
        repeat: how often an epoch shows each image.

    Raises:
        FileNotFoundError: an archive is missing.
        ValueError: an archive is broken; or no sample has an image, or a member that is asked for; at first use.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        image: str | Sequence[str] | None = None,
        caption: str | Sequence[str] | None = "txt",
        loss_mask: str | None = None,
        inputs: Mapping[str, str] | None = None,
        index: str | Path | None = None,
        mask_scale: MaskScale = "linear",
        background: Sequence[int] = (255, 255, 255),
        repeat: Annotated[float, positive] = 1,
    ) -> None:
        self.shards = shard_paths(shards)
        self.layout = Layout(image, caption, loss_mask, inputs)
        self.index = None if index is None else Path(index).expanduser()
        self.reading = Reading(background, mask_scale)
        self.repeat = check_repeat(repeat, "repeat")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        """The name of the archive, then that of the sample."""
        shard, local = self._locate(index)
        return f"{self._prefixes[shard]}/{self._samples[shard].keys[local]}"

    def size(self, index: int) -> tuple[int, int]:
        shard, local = self._locate(index)
        with io.BufferedReader(Section(self.shards[shard], self._samples[shard].places[local, 0]), 4096) as file:
            return read_size(file)

    def stamps(self) -> Stamps:
        """Of the images: an image is unchanged if its archive is, and it is at the same place."""
        names: list[str] = []
        stamps: list[np.ndarray] = []
        for path, samples in zip(self.shards, self._samples, strict=True):
            names += [f"{path.resolve()}/{offset}" for offset in samples.places[:, 0, 0].tolist()]
            stamps.append(np.full(len(samples.places), path.stat().st_mtime_ns, dtype=np.int64))
        return Stamps(names, np.concatenate(stamps), np.concatenate([s.places[:, 0, 1] for s in self._samples]))

    def captions(self, index: int) -> list[str]:
        shard, local = self._locate(index)
        return self.layout.texts(self.shards[shard], self._samples[shard].places[local], self.key(index))

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return self.reading.load(self._parts(index), at_least)

    def fingerprint(self, index: int) -> str:
        """Hash of all that `load` gives for this image, whatever it is called."""
        return self.reading.fingerprint(self._parts(index), hash_path)

    def _parts(self, index: int) -> Parts:
        shard, local = self._locate(index)
        return self.layout.parts(self.shards[shard], self._samples[shard].places[local])

    def _locate(self, index: int) -> tuple[int, int]:
        """(number of the archive, number within it)."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    @cached_property
    def _samples(self) -> list[Samples]:
        found = [find_samples(members(path, self.index), self.layout, path) for path in self.shards]
        check_members(found, self.layout)
        return found

    @cached_property
    def _starts(self) -> np.ndarray:
        """(archives + 1,) number of the first sample of each."""
        return np.concatenate([[0], np.cumsum([len(samples.places) for samples in self._samples], dtype=np.int64)])

    @cached_property
    def _prefixes(self) -> list[str]:
        return prefixes(self.shards)


def check_members(found: Sequence[Samples], layout: Layout) -> None:
    """Stop if no sample has an image, or none has a member that is asked for.

    Raises:
        ValueError: naming the members that there are.
    """
    seen = sorted(set().union(*(samples.seen for samples in found)))
    if not any(len(samples.places) for samples in found):
        raise ValueError(f"shards: no sample has an image; the members are {', '.join(seen) or 'none'}; set image")
    require(layout.roles, seen, "member", "the shards", "shards")


def prefixes(paths: Sequence[Path]) -> list[str]:
    """A short name for each archive, all different."""
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    top = os.path.commonpath([path.parent.absolute() for path in paths])
    return [path.absolute().relative_to(top).with_suffix("").as_posix() for path in paths]


def _member_and_key(option: Any) -> tuple[str, str | None]:
    """("json", "caption") for "json:caption", ("txt", None) for "txt"."""
    member, colon, key = str(option).partition(":")
    member = member.lower().lstrip(".")
    if colon and not key:
        raise ValueError(f'caption: {option!r} names no key; use e.g. "json:caption"')
    if member == "json" and not key:
        raise ValueError('caption: "json" holds several things; say which, e.g. "json:caption"')
    return member, key or None
