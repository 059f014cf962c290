"""What a user asks for: the pictures of one inference call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from torch import Tensor

from hcpdiff.config.ranges import ExistingPath, Range
from hcpdiff.diffusion.guidance import Combine
from hcpdiff.diffusion.process import Process
from hcpdiff.types import Prompt

Seed = Annotated[int, Range(ge=0, le=2**62)]  # torch's generators take a little more
WordFile = Annotated[str, ExistingPath()]
Sampler = Callable[[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor, Tensor, Process], Tensor]
Spacing = Callable[[int, Process, tuple[int, int]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures of one size, made with one setting.

    Picture i of a prompt uses the seed `seed + i`, whatever else is in the request: a seed gives the same picture in
    any batch.
    """

    prompts: list[str | Prompt]
    negative: str = ""  # for prompts that have none of their own
    size: tuple[Annotated[int, Range(ge=8)], Annotated[int, Range(ge=8)]] = (512, 512)  # (height, width)
    steps: Annotated[int, Range(ge=1)] = 28
    guidance: Annotated[float, Range(ge=0)] | None = None  # the model's own; 1 turns the negative prompt off
    combine: Combine | None = None  # what guidance makes of the two predictions; default: the model's own
    sampler: Sampler | None = None  # hcpdiff.diffusion.samplers.euler
    spacing: Spacing | None = None  # which timesteps are visited; default: the model's own
    seed: Seed = 0
    images_per_prompt: Annotated[int, Range(ge=1)] = 1
    batch_size: Annotated[int, Range(ge=1)] = 8
    control_image: Annotated[str, ExistingPath("file")] | None = None  # for a ControlNet

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts: the list is empty; give at least one, '' for none in particular")
        if isinstance(self.prompts, str):
            raise ValueError(f"prompts: a text is not a list; use [{self.prompts!r}]")
        if not 0 <= self.seed <= 2**62:
            raise ValueError(f"seed: {self.seed} is out of range; use 0 to {2**62}")

    def pictures(self) -> list[tuple[Prompt, int]]:
        """(prompt, seed) of every picture, in order."""
        prompts = [p if isinstance(p, Prompt) else Prompt(p, self.negative) for p in self.prompts]
        return [(p, self.seed + i) for p in prompts for i in range(self.images_per_prompt)]


def prompts_from_file(path: Path) -> list[str]:
    """The prompts of a text file, one per line; empty lines and lines that begin with # are none."""
    if not path.is_file():
        raise FileNotFoundError(f"--prompts: no file at {path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts: {path} is not UTF-8 text: {error}") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"--prompts: {path} has no prompts; write one per line")
    return found


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained plugin file and how strongly it acts; several strengths make a row of pictures each."""

    path: Annotated[str, ExistingPath()]
    strength: float | list[float] = 1.0

    def __post_init__(self) -> None:
        if self.strength == []:
            raise ValueError("strength: the list is empty; give a number, or several")

    def strengths(self) -> list[float]:
        return list(self.strength) if isinstance(self.strength, list) else [self.strength]


@dataclass(frozen=True, kw_only=True)
class InferSettings(Request):
    """The `infer` section: a request, the adapters and words to load, and where the pictures go."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    words: WordFile | dict[str, WordFile | list[WordFile]] = field(default_factory=dict)
    out: str = "outputs"

    def sweeps(self) -> list[dict[str, float]]:
        """The strength of each adapter, for each row of pictures; lists go together, a single number is for all rows.

        Raises:
            ValueError: two lists differ in length.
        """
        lengths = {name: len(a.strengths()) for name, a in self.adapters.items() if isinstance(a.strength, list)}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {count}" for name, count in lengths.items())
            raise ValueError(f"infer.adapters: strengths go together, so lists must be equally long; {counts}")
        rows = max(lengths.values(), default=1)
        strengths = {n: a.strengths() if n in lengths else a.strengths() * rows for n, a in self.adapters.items()}
        return [{name: values[row] for name, values in strengths.items()} for row in range(rows)]
