"""One step of the user's transforms: an albumentations pipeline, a torchvision transform, or any function."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

Arrays: TypeAlias = dict[str, np.ndarray]  # image (h, w, 3) uint8; loss_mask (h, w) float32; control_image like image
Augment: TypeAlias = Callable[..., Any]  # f(image=..., loss_mask=..., control_image=...) -> what it changed, by name


class Step(Protocol):
    """One transform of a pipeline."""

    draws_globally: bool  # from the global generators of Python, numpy and torch

    def __call__(self, arrays: Arrays, seed: int) -> Mapping[str, Any]:
        """What it changed of the arrays."""
        ...


# torchvision's, of both of its versions, that leave each pixel where it is
_COLOUR_NAMES = (
    "ColorJitter GaussianBlur GaussianNoise Grayscale Identity JPEG RGB RandomAdjustSharpness RandomAutocontrast "
    "RandomChannelPermutation RandomEqualize RandomErasing RandomGrayscale RandomInvert RandomPhotometricDistort "
    "RandomPosterize RandomSolarize ToImage"
)
_COLOURS = frozenset(_COLOUR_NAMES.split())
_UNKNOWN = frozenset(("Lambda", "Module", "Transform", "_RandomApplyTransform"))  # say nothing about what it does
_CONVERSION_NAMES = (
    "ConvertImageDtype FromFloat LinearTransformation Normalize PILToTensor ToDtype ToFloat ToPILImage ToPureTensor "
    "ToTensor ToTensor3D ToTensorV2"
)
_CONVERSIONS = frozenset(_CONVERSION_NAMES.split())


def listed(transforms: Augment | Sequence[Augment]) -> list[Augment]:
    """One or several, as a list."""
    return list(transforms) if isinstance(transforms, Sequence) and not callable(transforms) else [transforms]


def steps_of(transforms: Augment | Sequence[Augment]) -> Iterator[tuple[bool, Step]]:
    """Whether it moves pixels, and the step."""
    for transform in listed(transforms):
        origin = library(transform)
        if origin is not None:
            _refuse_conversion(transform)
        if origin == "torchvision" and "Compose" in _names(transform):
            yield from steps_of(inner(transform) or [])
        elif origin == "torchvision":
            yield _moves(transform), _TorchVision(transform)
        elif origin == "albumentations":
            yield from _albumentations(transform)
        elif callable(transform):
            yield bool(getattr(transform, "geometric", False)), _Own(transform)
        else:
            raise ValueError(f"transforms: {transform!r} cannot be called; use a function or a transform")


def _refuse_conversion(transform: object) -> None:
    if _names(transform) & _CONVERSIONS:
        raise ValueError(
            f"transforms: {type(transform).__name__} is not needed, as the dataset makes tensors in [-1, 1] itself; "
            "leave it out"
        )


def _albumentations(transform: Any) -> Iterator[tuple[bool, Step]]:
    import albumentations

    if not isinstance(transform, albumentations.Compose):
        transform = albumentations.Compose([transform])
    for part in transform.transforms:
        _refuse_conversion(part)
    moves = [_moves(part) for part in transform.transforms]
    if type(transform) is albumentations.Compose and transform.p == 1 and len(set(moves)) == 2:
        for kind in (True, False):
            parts = [part for part, moved in zip(transform.transforms, moves, strict=True) if moved is kind]
            targets = dict(transform.additional_targets)
            yield kind, _Albumentations(albumentations.Compose(parts, additional_targets=targets))
    else:
        yield any(moves), _Albumentations(transform)


def inner(transform: object) -> list[Any] | None:
    """What a container contains; None if it is none."""
    parts = getattr(transform, "transforms", None)
    return list(parts) if isinstance(parts, (Sequence, torch.nn.ModuleList)) and not isinstance(parts, str) else None


def library(transform: object) -> str | None:
    """Whose class it is, or is derived from."""
    roots = {cls.__module__.partition(".")[0] for cls in type(transform).__mro__}
    return next((name for name in ("albumentations", "torchvision") if name in roots), None)


def _names(transform: object) -> set[str]:
    return {cls.__name__ for cls in type(transform).__mro__}


def _moves(transform: Any) -> bool:
    """Whether it moves pixels; of a container, whether anything in it does."""
    if hasattr(transform, "geometric"):
        return bool(transform.geometric)
    parts = inner(transform)
    if parts is not None:
        return any(map(_moves, parts))
    if library(transform) == "albumentations":
        return "ImageOnlyTransform" not in _names(transform)
    known = (cls.__name__ for cls in type(transform).__mro__ if cls.__module__.startswith("torchvision."))
    name = next(known, "Module")
    return name not in _COLOURS and name not in _UNKNOWN


class _Albumentations:
    draws_globally = False

    def __init__(self, compose: Any) -> None:
        self.compose = compose

    def __call__(self, arrays: Arrays, seed: int) -> Mapping[str, Any]:
        known = self.compose.additional_targets
        extra = {name: "mask" for name in arrays if name != "image" and name not in known}
        if extra:
            self.compose.add_targets(extra)
        self.compose.set_random_seed(seed % 2**32)
        return self.compose(**arrays)


class _TorchVision:
    draws_globally = True

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.knows_masks = any(
            cls.__module__.startswith("torchvision.transforms.v2") for cls in type(transform).__mro__
        )

    def __call__(self, arrays: Arrays, seed: int) -> Mapping[str, Any]:
        with _seeded(seed):
            return self._joint(arrays) if self.knows_masks else self._image_only(arrays)

    def _joint(self, arrays: Arrays) -> Mapping[str, Any]:
        from torchvision import tv_tensors

        kinds = {name: tv_tensors.Image if name == "image" else tv_tensors.Mask for name in arrays}
        given = {name: kinds[name](_channels_first(array)) for name, array in arrays.items()}
        return {name: _channels_last(name, result) for name, result in self.transform(given).items()}

    def _image_only(self, arrays: Arrays) -> Mapping[str, Any]:
        if len(arrays) > 1 and _moves(self.transform):
            name, others = type(self.transform).__name__, " and ".join(name for name in arrays if name != "image")
            raise ValueError(
                f"transforms: torchvision.transforms.{name} cannot move {others} along with the image; use "
                f"torchvision.transforms.v2.{name}"
            )
        return {"image": _channels_last("image", self.transform(_channels_first(arrays["image"])))}


class _Own:
    draws_globally = True

    def __init__(self, function: Augment) -> None:
        self.function = function

    def __call__(self, arrays: Arrays, seed: int) -> Mapping[str, Any]:
        with _seeded(seed):
            if hasattr(self.function, "set_random_seed"):
                self.function.set_random_seed(seed % 2**32)  # type: ignore[attr-defined]
            result = self.function(**arrays)
        if not isinstance(result, Mapping):
            raise ValueError(f"transforms: {self.function!r} gave {type(result).__name__}; use {{'image': array}}")
        return result


def _channels_first(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if array.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _channels_last(name: str, result: Any) -> np.ndarray:
    if not isinstance(result, torch.Tensor):
        raise ValueError(f"transforms: {name} became {type(result).__name__}; leave out what changes the type")
    array = result.as_subclass(torch.Tensor).numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators start at `seed`; after it, they go on as if nothing had been drawn."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
