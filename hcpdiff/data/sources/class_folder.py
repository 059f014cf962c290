"""A folder of class folders."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np

from hcpdiff.config.ranges import positive
from hcpdiff.data.captions import CaptionOption
from hcpdiff.data.sources.folder import FolderPath, FolderSource, check_repeat

_CLASS = "{class}"  # in a caption: the name of the class folder


class ClassFolderSource(FolderSource):
    """The images of a folder whose subfolders are classes: `<path>/<class>/.../<image>`.

        source:
          _target_: hcpdiff.data.ClassFolderSource
          path: data/animals                         # data/animals/cat/1.png ...
          repeat: {cat: 3, dog: 0.5}                 # the other classes: 1
          class_captions: "a photo of a {class}"

    Args:
        path: the folder of class folders.
        repeat: how often an epoch shows each image, or {class: how often}; a class that is not named there counts 1.
        class_captions: the caption of images that have none of their own, or {class: caption, or list of captions};
            `{class}` in it is the name of the class folder. By default, and for a class that is not named there, it is
            that name.
        captions: as of `FolderSource`; {} leaves those beside the images out.
        control_images, loss_masks, mask_scale, alpha, background: as of `FolderSource`.

    Raises:
        FileNotFoundError: a folder or file is missing.
    """

    def __init__(
        self,
        path: FolderPath,
        *,
        repeat: Annotated[float, positive] | Mapping[str, Annotated[float, positive]] = 1,
        class_captions: str | Mapping[str, str | Sequence[str]] = _CLASS,
        captions: CaptionOption = None,
        control_images: FolderPath | None = None,
        loss_masks: FolderPath | None = None,
        mask_scale: Literal["linear", "boost"] = "linear",
        alpha: Literal["background", "loss_mask"] = "background",
        background: Sequence[int] = (255, 255, 255),
    ) -> None:
        super().__init__(
            path,
            captions=captions,
            control_images=control_images,
            loss_masks=loss_masks,
            mask_scale=mask_scale,
            alpha=alpha,
            background=background,
            repeat=1 if isinstance(repeat, Mapping) else repeat,
        )
        self.repeats = dict(repeat) if isinstance(repeat, Mapping) else {}
        for name, value in self.repeats.items():
            check_repeat(value, f"repeat.{name}")
        self.class_captions = class_captions

    def check(self) -> None:
        """As of `FolderSource`; and raise for images that lie in no class folder, and classes that are none."""
        self._check_classes(self.repeats, "repeat")
        super().check()
        _ = self._captions_of_class

    @property
    def repeat(self) -> float | np.ndarray:
        """How often an epoch shows each image, (N,) if classes differ."""
        self._check_classes(self.repeats, "repeat")
        if not self.repeats:
            return super().repeat
        return np.fromiter((self.repeats.get(_class_of(name), 1) for name in self.files), np.float64, len(self.files))

    @cached_property
    def classes(self) -> list[str]:
        """The names of the class folders, sorted.

        Raises:
            ValueError: an image lies in none.
        """
        loose = next((name for name in self.files if "/" not in name and name not in self._listing.unusable), None)
        if loose is not None:
            raise ValueError(f"path: {loose} lies in no class folder of {self.path}; move it into one")
        return sorted({_class_of(name) for name in self.files})

    def captions(self, index: int) -> Sequence[str]:
        """Those of the image, else those of its class."""
        return super().captions(index) or self._captions_of_class[_class_of(self.files[index])]

    def caption_weights(self, index: int) -> Sequence[float] | None:
        """How often each caption is drawn, if the captions of the image say so."""
        return super().caption_weights(index) if super().captions(index) else None

    @cached_property
    def _captions_of_class(self) -> dict[str, list[str]]:
        options = self.class_captions
        if not isinstance(options, Mapping):
            return {name: [options.replace(_CLASS, name)] for name in self.classes}
        self._check_classes(options, "class_captions")
        captions = {}
        for name in self.classes:
            texts = options.get(name, _CLASS)
            captions[name] = [text.replace(_CLASS, name) for text in ([texts] if isinstance(texts, str) else texts)]
        return captions

    def _check_classes(self, names: Iterable[str], key: str) -> None:
        for name in names:
            if name not in self.classes:
                near = difflib.get_close_matches(name, self.classes, 1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.classes)}"
                raise ValueError(f"{key}: {name!r} is no class folder of {self.path}; {hint}")


def _class_of(name: str) -> str:
    return name.partition("/")[0]
