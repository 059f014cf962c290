"""The images of a folder, with the captions, masks and condition images that lie beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from hcpdiff.config.ranges import ExistingPath, at_least_1
from hcpdiff.data.captions import CaptionOption, CaptionReader, caption_reader, stem
from hcpdiff.data.images import SUFFIXES, read_grey, read_rgb, read_size
from hcpdiff.data.sources.base import Record

FolderPath = Annotated[str | Path, ExistingPath("folder")]


class FolderSource:
    """The images of a folder and its subfolders, in the order of their relative paths; hidden files are left out.

    Args:
        path: the folder.
        captions: None reads `<image name>.txt` beside each image, or a `captions.json` (or an only .json file) in the
            folder. A path to another folder does the same there. A path to a .json file, or a mapping:
            {name: caption, or list of captions}. A callable: name -> list of captions.
        control_images: folder of condition images of the same relative path (any suffix); each becomes
            `inputs["control_image"]`, cut like its image, in [0, 1]. Every image needs one.
        loss_masks: folder of grey images of the same relative path; an image without one counts fully.
        mask_scale: "linear": black is weight 0, white is 1. "boost": mid-grey is 1 and white is 5
            (0, 25, 50, 75 and 100 % brightness give 0, 0.5, 1, 3 and 5).
        background: RGB colour under transparent images.
        repeat: how often an epoch shows each image.
        recursive: False leaves subfolders out.

    Raises:
        FileNotFoundError: a folder or file is missing.
    """

    def __init__(
        self,
        path: FolderPath,
        *,
        captions: CaptionOption = None,
        control_images: FolderPath | None = None,
        loss_masks: FolderPath | None = None,
        mask_scale: Literal["linear", "boost"] = "linear",
        background: Sequence[int] = (255, 255, 255),
        repeat: Annotated[int, at_least_1] = 1,
        recursive: bool = True,
    ) -> None:
        self.path = _folder(path, "path")
        self.control_images = None if control_images is None else _folder(control_images, "control_images")
        self.loss_masks = None if loss_masks is None else _folder(loss_masks, "loss_masks")
        if mask_scale not in ("linear", "boost"):
            raise ValueError(f"mask_scale: {mask_scale!r} is unknown; use 'linear' or 'boost'")
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise ValueError(f"background: {list(background)} is no RGB colour; use three numbers from 0 to 255")
        if repeat < 1:
            raise ValueError(f"repeat: {repeat} would show no image; use 1 or more")
        self.mask_scale = mask_scale
        self.background = (int(background[0]), int(background[1]), int(background[2]))
        self.repeat = repeat
        self.recursive = recursive
        self._caption_option = captions

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return self.files[index]

    def size(self, index: int) -> tuple[int, int]:
        return read_size(self.path / self.files[index])

    def captions(self, index: int) -> Sequence[str]:
        return self._read_captions(self.files[index])

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        name = self.files[index]
        record = Record(read_rgb(self.path / name, background=self.background, at_least=at_least))
        if self.control_images is not None:
            record.inputs["control_image"] = read_rgb(self._control(name), at_least=at_least)
        mask = self._masks.get(stem(name))
        if mask is not None:
            record.loss_mask = mask_weights(read_grey(mask), self.mask_scale)
        return record

    def fingerprint(self, index: int) -> str:
        """Hash of all that `load` gives for this image, whatever the files are called."""
        name = self.files[index]
        parts = [self.path / name]
        if self.control_images is not None:
            parts.append(self._control(name))
        mask = self._masks.get(stem(name))
        digest = hashlib.blake2b(repr((self.background, mask and self.mask_scale)).encode(), digest_size=16)
        for part in parts if mask is None else [*parts, mask]:
            content = part.read_bytes()
            digest.update(len(content).to_bytes(8, "big"))
            digest.update(content)
        return digest.hexdigest()

    @cached_property
    def files(self) -> list[str]:
        """Relative paths of all images, sorted."""
        inside = {folder.resolve() for folder in (self.control_images, self.loss_masks) if folder is not None}
        files = list_images(self.path, recursive=self.recursive, skip=inside - {self.path.resolve()})
        if not files:
            raise ValueError(f"path: no images in {self.path}; put .png, .jpg, .webp ... files there")
        return files

    @cached_property
    def _read_captions(self) -> CaptionReader:
        return caption_reader(self._caption_option, self.path, self.files)

    @cached_property
    def _controls(self) -> dict[str, Path]:
        return {} if self.control_images is None else _by_stem(self.control_images)

    @cached_property
    def _masks(self) -> dict[str, Path]:
        return {} if self.loss_masks is None else _by_stem(self.loss_masks)

    def _control(self, name: str) -> Path:
        path = self._controls.get(stem(name))
        if path is None:
            raise ValueError(f"no control image {stem(name)}.* in {self.control_images}")
        return path


def list_images(folder: Path, *, recursive: bool = True, skip: frozenset[Path] | set[Path] = frozenset()) -> list[str]:
    """Relative paths of the images below `folder`, sorted; links are followed, each folder once."""
    found: list[str] = []
    seen: set[str] = set()

    def walk(here: Path, prefix: str) -> None:
        real = os.path.realpath(here)
        if real in seen or Path(real) in skip:
            return
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if recursive:
                        walk(Path(entry.path), f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    found.append(prefix + entry.name)

    walk(folder, "")
    return sorted(found)


def mask_weights(grey: Image.Image, scale: str) -> np.ndarray:
    """A grey image as weights of the loss, (h, w) float32; see `FolderSource` for the two scales."""
    values = np.asarray(grey, dtype=np.float32)
    if scale == "linear":
        return values / 255
    return np.where(values <= 127, values / 127, (values - 127) / 128 * 4 + 1).astype(np.float32)


def _by_stem(folder: Path) -> dict[str, Path]:
    return {stem(name): folder / name for name in list_images(folder)}


def _folder(path: str | Path, key: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}: no folder at {path}; create it or set {key}")
    return folder
