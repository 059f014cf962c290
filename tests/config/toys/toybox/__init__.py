"""A small library for the tests: what a user's own package may look like."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from hcpdiff.config.ranges import ExistingPath, Range

if TYPE_CHECKING:
    from nowhere import Tensor

system = os.system  # a re-export that must not work
answer = 42


class Shape(Protocol):
    def area(self) -> float: ...


class Square:
    def __init__(self, side: Annotated[float, Range(gt=0)] = 1.0) -> None:
        if side > 100:
            raise ValueError(f"side: {side} does not fit on the table; use 100 or less")
        self.side = side

    @classmethod
    def of_area(cls, area: float) -> Square:
        return cls(area**0.5)

    def area(self) -> float:
        return self.side**2


class Other(Shape):
    def area(self) -> float:
        return 0.0


class Line:
    def __init__(self, length: float) -> None:
        self.length = length


class Optimizer:
    def __init__(
        self, params: Sequence[float], lr: float = 0.1, *, decay: Annotated[float, Range(ge=0, le=1)] = 0.0
    ) -> None:
        self.params, self.lr, self.decay = params, lr, decay


class Doubler:
    """A class whose objects can be called."""

    def __init__(self, *, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.factor * (a + b)


def loss(prediction: Tensor, target: Tensor, *, power: int = 2) -> float:
    return abs(prediction - target) ** power


def needy(prediction: Tensor, target: Tensor, *, scale: float) -> float:
    return scale * (prediction - target)


def one_value(prediction: Tensor) -> Tensor:
    return prediction


def broken(reason: str = "no reason") -> None:
    raise RuntimeError(reason)


def sink(first: int = 0, **kwargs: Any) -> dict[str, Any]:
    found = {"first": first, "second": kwargs.pop("second", None)}
    if kwargs:
        found["third"] = kwargs["third"]
    return found


def leave_a_mark(path: str) -> None:
    Path(path).touch()


class Marker:
    """Leaves one when it is made."""

    def __init__(self, *, path: str) -> None:
        leave_a_mark(path)

    def __call__(self, *args: Any) -> None:
        """It could be a loss."""


class Parent:
    def __init__(self, width: int = 1, height: int = 1) -> None:
        self.size = width, height


class Child(Parent):
    def __init__(self, depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth


class Remote:
    """Takes what makes other libraries run code that they download."""

    def __init__(
        self,
        *,
        trust_remote_code: bool = False,
        custom_pipeline: str | None = None,
        code_revision: str | None = None,
        weights_only: bool = True,
    ) -> None:
        raise AssertionError("must not be reached")


@dataclass(kw_only=True)
class Ema:
    decay: Annotated[float, Range(ge=0, lt=1)] = 0.999


@dataclass(kw_only=True)
class Train:
    steps: Annotated[int, Range(ge=1)]
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpointing: Literal["none", "all"] | Annotated[int, Range(ge=1)] = "none"
    optimizer: Callable[[Sequence[float]], Optimizer] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    guidance: float | Callable[[Tensor], Tensor] | None = None
    shuffle: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    size: tuple[int, ...] = (8, 8)
    ema: Ema | None = None
    shape: Shape | None = None
    shapes: list[Shape] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    weights: Mapping[str, float] = field(default_factory=dict)
    folder: Annotated[str, ExistingPath("folder")] | None = None
    out: Path = Path("out")
    note: str = ""
    loggers: list[Any] = field(default_factory=list)
    emas: dict[str, Ema] = field(default_factory=dict)
