"""Prompts without images, for what is trained on text alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from hcpdiff.config.ranges import ExistingPath, positive
from hcpdiff.data.sources.base import Record
from hcpdiff.data.sources.folder import check_repeat
from hcpdiff.data.sources.reading import captions_of


class PromptSource:
    """Prompts only: batches have sizes and prompts, and images of no channels, (B, 0, H, W).

    For programs of your own: `hcpdiff train` needs images, and refuses it.

        source: {_target_: hcpdiff.data.PromptSource, prompts: prompts.txt, size: 512}

    Args:
        prompts: a text file with a prompt per line; a list of prompts; or {name: prompt, or list of prompts of which
            one is drawn each time}.
        size: of the images that would belong to them, in pixels: an int for a square, or [height, width].
        repeat: how often an epoch shows each prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no prompt, or one is no text.
    """

    has_images = False

    def __init__(
        self,
        prompts: Annotated[str | Path, ExistingPath("file")] | Sequence[str] | Mapping[str, str | Sequence[str]],
        *,
        size: int | Sequence[int],
        repeat: Annotated[float, positive] = 1,
    ) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"size: {size!r} is no size; use an int or [height, width]")
        if isinstance(prompts, (str, Path)):
            prompts = _lines(prompts)
        if isinstance(prompts, Mapping):
            self._keys = [str(name) for name in prompts]
            self._captions = [captions_of(entry, f"prompts: {name!r}") for name, entry in prompts.items()]
        else:
            self._keys = None
            self._captions = [captions_of(entry, f"prompts[{number}]") for number, entry in enumerate(prompts)]
        if not self._captions:
            raise ValueError("prompts: there is none; write one per line, or give a list")
        self._size = (int(sides[0]), int(sides[1]))
        self.repeat = check_repeat(repeat, "repeat")

    def __len__(self) -> int:
        return len(self._captions)

    def key(self, index: int) -> str:
        """The prompt's name, or its number."""
        return f"prompt-{index:06}" if self._keys is None else self._keys[index]

    def size(self, index: int) -> tuple[int, int]:
        return self._size

    def sizes(self) -> np.ndarray:
        """(N, 2): the one size of all."""
        return np.tile(np.array(self._size, dtype=np.int32), (len(self), 1))

    def captions(self, index: int) -> Sequence[str]:
        return self._captions[index]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(None)

    def fingerprint(self, index: int) -> str:
        """The same for all, as there is nothing to see."""
        return hashlib.blake2b(b"no image", digest_size=16).hexdigest()


def _lines(path: str | Path) -> list[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"prompts: no file at {path}; give a text file with a prompt per line, or a list")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 ({error.reason} at byte {error.start}); save it so") from error
    return [line.strip() for line in text.split("\n") if line.strip()]
