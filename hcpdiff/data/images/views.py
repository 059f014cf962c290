"""How one showing of an image is cut and changed: where the crop lies, whether it is mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hcpdiff.data.images.cutting import place
from hcpdiff.randomness import derive, python_random
from hcpdiff.types import SizeInfo

Size: TypeAlias = tuple[int, int]  # (height, width)

_RATIOS = (0.7548776662466927, 0.5698402909980532, 0.618033988749895)  # 1 / g, 1 / g^2, g^3 = g + 1; the golden ratio


@dataclass(frozen=True)
class View:
    """One showing of an image."""

    size: SizeInfo
    flip: bool = False
    seed: int | None = None  # of the user's transforms; None: nothing is random about this view


@dataclass(frozen=True)
class Views:
    """The settings that decide all views of a dataset.

    Args:
        crop: "center", or "random".
        flip: probability of mirroring.
        augmented: the user has transforms of his own.
        variants: None draws afresh each time. n draws from n views of each image, which take turns from epoch to epoch
            and depend on the image's key only, so that they can be cached.
    """

    crop: Literal["center", "random"] = "center"
    flip: float = 0.0
    augmented: bool = False
    variants: int | None = None

    def __post_init__(self) -> None:
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop: {self.crop!r} is unknown; use 'center' or 'random'")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: {self.flip} is no probability; use a number from 0 to 1")
        if self.variants is not None and self.variants < 1:
            raise ValueError(f"variants: {self.variants} is too few; use 1 or more")
        if self.variants is not None and not self.random:
            raise ValueError(
                f"variants: all {self.variants} would be equal, as crop is 'center' and flip {self.flip}; leave it out"
            )

    @property
    def random(self) -> bool:
        """Whether two showings of an image may differ."""
        return self.crop == "random" or 0 < self.flip < 1 or self.augmented

    @property
    def countable(self) -> int | None:
        """How many different views an image has; None if they are endless."""
        return self.variants if self.random else 1

    def variant(self, key: str, showing: int) -> int:
        """Which variant the n-th showing of an image uses: they take turns, each image from a place of its own."""
        return 0 if self.variants in (None, 1) else (showing + derive(0, "first variant", key)) % self.variants

    def fixed(self, key: str, variant: int, original: Size, target: Size, *, resize: bool = True) -> View:
        """One of the countable views. Those of an image are spread evenly (by the R2 sequence), not drawn apart.

        Args:
            key: of the image.
            variant: which of them.
            original: (height, width) of the image.
            target: (height, width) that it is cut to.
            resize: False: it is not scaled, but cropped or padded to the target.
        """
        if not self.random:
            return View(place(original, target, resize=resize), flip=self.flip == 1)
        rng = python_random(0, "variants", key)
        spread = [(rng.random() + variant * ratio) % 1 for ratio in _RATIOS]
        return self._view(spread, derive(0, "transforms", key, variant), original, target, resize)

    def drawn(self, seed: int, original: Size, target: Size, *, resize: bool = True) -> View:
        """One of the endless views; `seed` decides which. For the rest see `fixed`."""
        rng = python_random(seed, "view")
        return self._view([rng.random() for _ in range(3)], derive(seed, "transforms"), original, target, resize)

    def _view(self, chance: Sequence[float], seed: int, original: Size, target: Size, resize: bool) -> View:
        """The view that three numbers in [0, 1) and a seed for the user's transforms decide."""
        position = (chance[0], chance[1]) if self.crop == "random" else (0.5, 0.5)
        size = place(original, target, position, resize=resize)
        return View(size, chance[2] < self.flip, seed if self.augmented else None)
