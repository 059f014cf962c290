"""Whether a LoRA file does in other programs what was trained: each one's reader against the live plugins."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from hcpdiff.formats import readers
from hcpdiff.formats.lora_files import Update, Updates, listing, read_tensors, without_mid
from hcpdiff.formats.names import canonical
from hcpdiff.formats.readers import Change, File

log = logging.getLogger("hcpdiff.formats")

TOLERANCE = 1e-2  # of the largest value: what saving as bfloat16 rounds away


@dataclass(frozen=True)
class Result:
    """What one program makes of a file."""

    program: str
    error: float  # the largest, as a share of the largest value
    unread: list[str]  # layers
    problem: str | None = None  # None where nothing is unread

    @property
    def loads(self) -> bool:
        return self.problem is None


def check(path: str | Path, updates: Updates, family: str, *, branch: str | None = None) -> list[Result]:
    """Read a written file as each program does, and compare with the live updates.

    Args:
        updates: what the plugins do, by layer.
        family: one of `names.ARCHITECTURES`.
        branch: the rows of a batch that the plugin works on; other programs have no such thing.
    """
    file = File(*read_tensors(Path(path)))
    live = {canonical(layer): without_mid(update) for layer, update in updates.items()}
    return [_result(program, file, live, family, branch) for program in readers.READERS[family]]


def lines(results: list[Result]) -> str:
    """One line for the log: where a file loads, and where not and why."""
    loads = [result for result in results if result.loads]
    names, error = ", ".join(result.program for result in loads), max((r.error for r in loads), default=0.0)
    good = f"loads in: {names} (max error {_short(error)})" if loads else "loads in: no other program"
    return "; ".join([good, *(f"not in {r.program}: {r.problem}" for r in results if not r.loads)])


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def _result(program: str, file: File, live: Updates, family: str, branch: str | None) -> Result:
    unread: list[str] = []
    error = 0.0
    for layer, update in live.items():
        change = readers.READERS[family][program](file, layer, family)
        if change is None:
            unread.append(layer)
        else:
            error = max(error, _difference(update, change))
    return Result(program, error, unread, _problem(program, file, live, unread, error, branch))


def _problem(
    program: str, file: File, live: Updates, unread: list[str], error: float, branch: str | None
) -> str | None:
    if branch is not None:
        return f"it would work on every row there, and was trained on the {branch} branch"
    if len(unread) == len(live):
        return "it reads no such names"
    if unread:
        return f"{len(unread)} of {len(live)} layers are not read: {listing(unread, 2)}"
    if file.biased and program != "diffusers":
        return "biases are not read"
    if not error <= TOLERANCE:
        return f"its effect differs by {error:.0%}"
    return None


def _difference(update: Update, change: Change) -> float:
    """Of the two changes of the weight, each applied to a few random inputs, which takes no full matrix."""
    down, generator = update.down.float().flatten(1).cpu(), torch.Generator().manual_seed(0)
    x = torch.randn(down.shape[1], 4, generator=generator)
    if change.down.flatten(1).shape[1] != len(x) or len(change.up) != len(update.up):
        return float("inf")
    ours = update.scale * (update.up.float().flatten(1).cpu() @ (down @ x))
    theirs = change.scale * (change.up.float().flatten(1) @ (change.down.float().flatten(1) @ x))
    largest = float(ours.abs().max())
    return float((ours - theirs).abs().max()) / largest if largest else float(theirs.abs().max())
