"""The images of a folder, with the captions, masks and condition images that lie beside them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from hcpdiff.config.ranges import ExistingPath, positive
from hcpdiff.data.captions import CaptionOption, CaptionReader, caption_reader, stem, weights_of
from hcpdiff.data.images.headers import image_size
from hcpdiff.data.images.reading import read_alpha, read_grey, read_rgb
from hcpdiff.data.index import FileIndex, hash_file
from hcpdiff.data.sources.base import Record, Stamps
from hcpdiff.data.sources.listing import Listing, list_folder, list_images

FolderPath = Annotated[str | Path, ExistingPath("folder")]


log = logging.getLogger("hcpdiff.data")


class FolderSource:
    """The images of a folder and its subfolders, in the order of their relative paths; hidden files are left out.

    Args:
        path: the folder.
        captions: None reads what lies in the folder: `captions.json` or an only .json file, else `captions.yaml` or an
            only .yaml file, else `<image name>.txt` beside each image; with .txt files there, a table must be called
            captions. A path to another folder does the same there. A
            path to a .json or .yaml file, or a mapping: {name: caption, list of captions, or list of {text, weight}}. A
            reader such as `FilenameCaptions`, or a function name -> captions.
        control_images: folder of condition images of the same relative path (any suffix); each becomes
            `inputs["control_image"]`, cut like its image, in [0, 1]. Images without one are left out.
        loss_masks: folder of grey images of the same relative path; an image without one counts fully.
        mask_scale: "linear": black is weight 0, white is 1. "boost": mid-grey is 1 and white is 5
            (0, 25, 50, 75 and 100 % brightness give 0, 0.5, 1, 3 and 5).
        alpha: what transparency means. "background": `background` shows through. "loss_mask": that too, and the loss
            counts by opacity: 0 where the image is transparent; times the weight of its loss mask, if it has one.
        background: RGB colour under transparent images.
        repeat: how often an epoch shows each image; 0.5 shows it in every second epoch.
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
        alpha: Literal["background", "loss_mask"] = "background",
        background: Sequence[int] = (255, 255, 255),
        repeat: Annotated[float, positive] = 1,
        recursive: bool = True,
    ) -> None:
        self.path = _folder(path, "path")
        self.control_images = None if control_images is None else _folder(control_images, "control_images")
        self.loss_masks = None if loss_masks is None else _folder(loss_masks, "loss_masks")
        if mask_scale not in ("linear", "boost"):
            raise ValueError(f"mask_scale: {mask_scale!r} is unknown; use 'linear' or 'boost'")
        if alpha not in ("background", "loss_mask"):
            raise ValueError(f"alpha: {alpha!r} is unknown; use 'background' or 'loss_mask'")
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise ValueError(f"background: {list(background)} is no RGB colour; use three numbers from 0 to 255")
        self.mask_scale = mask_scale
        self.alpha = alpha
        self.background = (int(background[0]), int(background[1]), int(background[2]))
        self.recursive = recursive
        self._repeat = check_repeat(repeat, "repeat")
        self._caption_option = captions
        self._root = os.path.join(os.path.abspath(self.path), "")
        self._hash_file: Callable[[str], str] = _hash_file

    def __len__(self) -> int:
        return len(self.files)

    def check(self) -> None:
        """Raise for what is wrong with captions, masks and condition images as a whole; log what some images lack."""
        unmatched = getattr(self._read_captions, "unmatched", ())
        if unmatched:
            log.info("captions: %d of them are for no image of %s, e.g. %r", len(unmatched), self.path, unmatched[0])
        stems = [stem(name) for name in self.files]
        for key, folder, found in (
            ("control_images", self.control_images, self._controls),
            ("loss_masks", self.loss_masks, self._masks),
        ):
            lacking = [name for name, own in zip(self.files, stems, strict=True) if own not in found]
            if folder is not None and len(lacking) == len(stems):
                raise ValueError(f"{key}: {folder} has nothing of the name of an image, e.g. {stems[0]}.png")
            if folder is not None and lacking:
                what = "are left out" if key == "control_images" else "count fully"
                log.info("%s: %d images have none and %s, e.g. %s", key, len(lacking), what, lacking[0])

    @property
    def repeat(self) -> float | np.ndarray:
        """How often an epoch shows each image."""
        return self._repeat

    def key(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return self.files[index]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the upright image.

        Raises:
            OSError: and others; the file, or the subfolder that it stands for, cannot be read.
        """
        name = self.files[index]
        if name in self._listing.unusable:
            raise OSError(self._listing.unusable[name])
        return image_size(self._root + name)

    def stamps(self) -> Stamps:
        """Of the image files, as they were when the folder was listed."""
        return Stamps(_Paths(self._root, self.files), self._listing.mtimes, self._listing.sizes)

    def captions(self, index: int) -> Sequence[str]:
        return self._read_captions(self.files[index])

    def caption_weights(self, index: int) -> Sequence[float] | None:
        """How often each caption is drawn, if the captions say so."""
        return weights_of(self._read_captions, self.files[index])

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        name = self.files[index]
        path = self._root + name
        record = Record(read_rgb(path, background=self.background, at_least=at_least))
        if self.control_images is not None:
            record.inputs["control_image"] = read_rgb(self._control(name), at_least=at_least)
        mask = self._masks.get(stem(name))
        if mask is not None:
            record.loss_mask = mask_weights(read_grey(mask), self.mask_scale)
        if self.alpha == "loss_mask":
            record.loss_mask = _times_opacity(record.loss_mask, read_alpha(path))
        return record

    def fingerprint(self, index: int) -> str:
        """Hash of all that `load` gives for this image, whatever the files are called."""
        name = self.files[index]
        parts = [self._root + name]
        if self.control_images is not None:
            parts.append(self._control(name))
        mask = self._masks.get(stem(name))
        settings = self.background, mask and self.mask_scale, self.alpha
        contents = [self._hash_file(part) for part in ([*parts, mask] if mask else parts)]
        return hashlib.blake2b(repr((settings, contents)).encode(), digest_size=16).hexdigest()

    def use_index(self, index: FileIndex) -> None:
        """Take the hashes of unchanged files from there."""
        self._hash_file = index.fingerprint

    @property
    def files(self) -> list[str]:
        """Relative paths of all images, sorted; of a subfolder that cannot be read, its path with a slash."""
        return self._listing.names

    @cached_property
    def _listing(self) -> Listing:
        inside = {folder.resolve() for folder in (self.control_images, self.loss_masks) if folder is not None}
        try:
            listing = list_folder(self.path, recursive=self.recursive, skip=inside - {self.path.resolve()})
        except ValueError as error:
            raise ValueError(f"path: {error}") from error
        if not listing.names:
            raise ValueError(f"path: no images in {self.path}; put .png, .jpg, .webp ... files there")
        for number, name in enumerate(listing.names if self.control_images is not None else ()):
            if stem(name) not in self._controls:
                listing.unusable.setdefault(name, self._no_control(name))
                listing.sizes[number] = -1  # so that no index of an earlier run says that it is usable
        return listing

    @cached_property
    def _read_captions(self) -> CaptionReader:
        return caption_reader(self._caption_option, self.path, self.files)

    @cached_property
    def _controls(self) -> dict[str, str]:
        return {} if self.control_images is None else _by_stem(self.control_images, "control_images")

    @cached_property
    def _masks(self) -> dict[str, str]:
        return {} if self.loss_masks is None else _by_stem(self.loss_masks, "loss_masks")

    def _control(self, name: str) -> str:
        path = self._controls.get(stem(name))
        if path is None:
            raise ValueError(self._no_control(name))
        return path

    def _no_control(self, name: str) -> str:
        return f"no control image {stem(name)}.* in {self.control_images}"


class _Paths(Sequence[str]):
    """Names behind one folder's path, joined when they are asked for."""

    def __init__(self, root: str, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.root + self.names[index]

    def __iter__(self) -> Iterator[str]:
        return map(self.root.__add__, self.names)


def mask_weights(grey: Image.Image, scale: str) -> np.ndarray:
    """A grey image as weights of the loss, (h, w) float32; see `FolderSource` for the two scales."""
    values = np.asarray(grey, dtype=np.float32)
    if scale == "linear":
        return values / 255
    return np.where(values <= 127, values / 127, (values - 127) / 128 * 4 + 1).astype(np.float32)


def check_repeat(repeat: float, key: str) -> float:
    """The number of times an epoch shows an image, if it is one.

    Raises:
        ValueError: it is not above 0.
    """
    if isinstance(repeat, bool) or not isinstance(repeat, (int, float)) or not 0 < repeat < math.inf:
        raise ValueError(f"{key}: {repeat} would show no image; use a number above 0, e.g. 2, or 0.5")
    return repeat


def _times_opacity(weights: np.ndarray | None, alpha: Image.Image | None) -> np.ndarray | None:
    if alpha is None or alpha.getextrema() == (255, 255):
        return weights
    opacity = mask_weights(alpha, "linear")
    if weights is None:
        return opacity
    return opacity * np.asarray(Image.fromarray(weights).resize(alpha.size, Image.Resampling.BILINEAR))


def _hash_file(path: str) -> str:
    return hash_file(path).hex()


def _by_stem(folder: Path, key: str) -> dict[str, str]:
    try:
        names = list_images(folder)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    root = os.path.join(os.path.abspath(folder), "")
    return {stem(name): root + name for name in names}


def _folder(path: str | Path, key: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}: no folder at {path}; create it or set {key}")
    return folder
