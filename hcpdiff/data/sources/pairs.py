"""Images that belong together by name: before and after, condition and image, preferred and rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

from hcpdiff.config.ranges import ExistingPath, positive
from hcpdiff.data.captions import CaptionOption, CaptionReader, caption_reader, stem, weights_of
from hcpdiff.data.index import FileIndex
from hcpdiff.data.sources.base import Record
from hcpdiff.data.sources.folder import check_repeat
from hcpdiff.data.sources.listing import list_images
from hcpdiff.data.sources.reading import MaskScale, Parts, Reading, hash_path, require, size_of

FolderPath = Annotated[str | Path, ExistingPath("folder")]


class PairSource:
    """Images of equal relative path (any suffix) in two or more folders, all cut alike.

        source:
          _target_: hcpdiff.data.PairSource
          folders: {after: data/after, before: data/before}
          image: after                 # `before` becomes inputs["before"]

    A name that is missing in one of the folders is listed as unusable.

    Args:
        folders: {role: folder}.
        image: role of the image that is trained on, by default the first; the others become `inputs[role]`, in [0, 1].
        captions: as of `FolderSource`, for the images of that role.
        loss_masks: folder of grey images of the same relative path; an image without one counts fully.
        mask_scale, background: see `FolderSource`.
        repeat: how often an epoch shows each pair.
        recursive: False leaves subfolders out.

    Raises:
        FileNotFoundError: a folder is missing.
    """

    def __init__(
        self,
        folders: Mapping[str, FolderPath],
        *,
        image: str | None = None,
        captions: CaptionOption = None,
        loss_masks: FolderPath | None = None,
        mask_scale: MaskScale = "linear",
        background: Sequence[int] = (255, 255, 255),
        repeat: Annotated[float, positive] = 1,
        recursive: bool = True,
    ) -> None:
        if len(folders) < 2:
            raise ValueError("folders: a pair needs two, e.g. {after: data/after, before: data/before}")
        self.folders = {role: _folder(folder, f"folders.{role}") for role, folder in folders.items()}
        self.loss_masks = None if loss_masks is None else _folder(loss_masks, "loss_masks")
        if image is not None:
            require([image], self.folders, "role", "folders", "image")
        self.image = next(iter(self.folders)) if image is None else image
        self.repeat = check_repeat(repeat, "repeat")
        self.recursive = recursive
        self.reading = Reading(background, mask_scale)
        self._hash_path: Callable[[str], str] = hash_path
        self._caption_option = captions

    def __len__(self) -> int:
        return len(self._stems)

    def key(self, index: int) -> str:
        """The relative path without suffix."""
        return self._stems[index]

    def size(self, index: int) -> tuple[int, int]:
        return size_of(self._paths(index)[self.image])

    def captions(self, index: int) -> Sequence[str]:
        return self._read_captions(self._name(index))

    def caption_weights(self, index: int) -> Sequence[float] | None:
        """How often each caption is drawn, relative to the others; None: all equally often."""
        return weights_of(self._read_captions, self._name(index))

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return self.reading.load(self._parts(index), at_least)

    def fingerprint(self, index: int) -> str:
        """Hash of all that `load` gives for this pair, whatever the files are called."""
        return self.reading.fingerprint(self._parts(index), self._hash_path)

    def use_index(self, index: FileIndex) -> None:
        """Take the hashes of unchanged files from there."""
        self._hash_path = index.fingerprint

    def _name(self, index: int) -> str:
        """The relative path of the image, with its suffix."""
        return self._paths(index)[self.image].relative_to(self.folders[self.image]).as_posix()

    def _parts(self, index: int) -> Parts:
        inputs = dict(self._paths(index))
        masks = self._masks.get(self._stems[index], [])
        if len(masks) > 1:
            raise ValueError(f"loss_masks has {_listed(masks)} of one name; keep one")
        return Parts(inputs.pop(self.image), masks[0] if masks else None, inputs)

    def _paths(self, index: int) -> dict[str, Path]:
        """The image of each role.

        Raises:
            ValueError: a role has none, or more than one.
        """
        name = self._stems[index]
        found = {role: files.get(name, []) for role, files in self._files.items()}
        missing = [f"no {role} {name}.* in {self.folders[role]}" for role, paths in found.items() if not paths]
        double = [f"{role} has {_listed(paths)} of one name; keep one" for role, paths in found.items() if paths[1:]]
        if missing or double:
            raise ValueError("; ".join(missing + double))
        return {role: paths[0] for role, paths in found.items()}

    @cached_property
    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """role -> stem -> files."""
        inside = {folder.resolve() for folder in (*self.folders.values(), self.loss_masks) if folder is not None}
        files = {
            role: _by_stem(folder, recursive=self.recursive, skip=inside - {folder.resolve()})
            for role, folder in self.folders.items()
        }
        for role, found in files.items():
            if not found:
                raise ValueError(f"folders.{role}: no images in {self.folders[role]}; put .png, .jpg ... files there")
        return files

    @cached_property
    def _stems(self) -> list[str]:
        """All names that any role has, sorted."""
        return sorted(set().union(*self._files.values()))

    @cached_property
    def _masks(self) -> dict[str, list[Path]]:
        return {} if self.loss_masks is None else _by_stem(self.loss_masks, recursive=self.recursive)

    @cached_property
    def _read_captions(self) -> CaptionReader:
        folder = self.folders[self.image]
        names = [path.relative_to(folder).as_posix() for paths in self._files[self.image].values() for path in paths]
        return caption_reader(self._caption_option, folder, names)


def _by_stem(folder: Path, *, recursive: bool, skip: Iterable[Path] = ()) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in list_images(folder, recursive=recursive, skip=skip):
        found.setdefault(stem(name), []).append(folder / name)
    return found


def _listed(paths: Sequence[Path]) -> str:
    return " and ".join(path.name for path in paths)


def _folder(path: str | Path, key: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}: no folder at {path}; create it or set {key}")
    return folder
