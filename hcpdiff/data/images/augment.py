"""The user's own transforms: which run before the crop and which after it, each with a seed for every example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from hcpdiff.data.images.steps import Arrays, Augment, Step, inner, library, listed, steps_of
from hcpdiff.randomness import derive


class Pipeline:
    """Transforms in two stages, seeded per example.

    Those that move pixels run before the crop, on the scaled image, so that it has no empty corners that the crop
    could have hidden; those of colour run after it, on the image alone. Each stage keeps the order given.

    - albumentations: a `DualTransform` moves, an `ImageOnlyTransform` colours. A `Compose` is pulled apart; other
      containers (`OneOf` ...) run before the crop as a whole if anything in them moves. Masks and condition images are
      its "mask" targets (unless `additional_targets` says otherwise): moved along, without blending pixels.
    - torchvision: by class, `Compose` and other containers likewise. Those of v2 move masks along as `tv_tensors.Mask`.
    - any other callable: after the crop, or before it if it has an attribute `geometric = True`. It is called with all
      arrays by name, and gives those that it changes; it may draw from the global generators of Python, numpy, torch.

    Raises:
        ValueError: one of them makes tensors or normalises, which the dataset does itself.
    """

    def __init__(self, transforms: Augment | Sequence[Augment]) -> None:
        self._shown = repr(list(map(_Shown, listed(transforms))))
        self.before: list[tuple[int, Step]] = []
        self.after: list[tuple[int, Step]] = []
        for number, (moves, step) in enumerate(steps_of(transforms)):
            (self.before if moves else self.after).append((number, step))

    @classmethod
    def of(cls, transforms: Augment | Sequence[Augment] | None) -> Pipeline | None:
        """The pipeline; None if there are no transforms."""
        return None if transforms is None or not listed(transforms) else cls(transforms)

    @property
    def draws_globally(self) -> bool:
        """Whether it uses the global generators of this process, which other threads must leave alone meanwhile."""
        return any(step.draws_globally for _, step in self.before + self.after)

    def __repr__(self) -> str:
        """All settings; with an address (" at 0x") where something does not show its own."""
        return self._shown

    def run_before(self, arrays: Arrays, seed: int) -> Arrays:
        """The stage before the crop."""
        return _run(self.before, arrays, seed)

    def run_after(self, arrays: Arrays, seed: int) -> Arrays:
        """The stage after the crop."""
        return _run(self.after, arrays, seed)


def _run(steps: Sequence[tuple[int, Step]], arrays: Arrays, seed: int) -> Arrays:
    for number, step in steps:
        given = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        shapes = {name: (array.shape, array.dtype) for name, array in given.items()}
        changed = {name: np.asarray(array) for name, array in step(given, derive(seed, "step", number)).items()}
        for name, array in changed.items():
            _check(name, array, shapes)
        arrays = {**given, **changed}
    return arrays


def _check(name: str, array: np.ndarray, expected: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    if name not in expected:
        raise ValueError(f"transforms: they gave {name!r}, which was not given to them; those are {list(expected)}")
    shape, dtype = expected[name]
    if array.shape[:2] != shape[:2]:
        raise ValueError(
            f"transforms: {name} became {' x '.join(map(str, array.shape[:2]))}, but must stay {shape[0]} x {shape[1]}"
            ", as the bucket decides its size; leave out what resizes or crops"
        )
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"transforms: {name} became {array.dtype} {array.shape}, but must stay {dtype} {shape}; leave out what "
            "changes the type or the channels"
        )


class _Shown:
    """A transform whose text shows its settings, or an address."""

    def __init__(self, transform: object) -> None:
        self.transform = transform

    def __repr__(self) -> str:
        silent = any(_says_nothing(part) for part in _leaves(self.transform))
        return f"{self.transform!r}{object.__repr__(self.transform) if silent else ''}"


def _leaves(transform: object) -> Iterator[object]:
    parts = inner(transform)
    if parts is None:
        yield transform
    for part in parts or ():
        yield from _leaves(part)


def _says_nothing(transform: object) -> bool:
    """Whether `repr` leaves out settings: of torch's modules it shows those that `extra_repr` names, and no others."""
    if isinstance(transform, torch.nn.Module):
        cls, plain = type(transform), torch.nn.Module
        if cls.__repr__ is plain.__repr__ and cls.extra_repr is plain.extra_repr:
            return True
    return type(transform).__name__ == "Lambda" and library(transform) == "torchvision"
