"""Whether a LoRA file does in other programs what was trained: each one's reader against the live plugins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hcpdiff.formats import change_readers, readers
from hcpdiff.formats.changes import AnyChange, Changes, mapped
from hcpdiff.formats.lora_files import Update, Updates, listing, read_tensors, without_mid
from hcpdiff.formats.names import canonical
from hcpdiff.formats.readers import File

log = logging.getLogger("hcpdiff.formats")

Errors = dict[str, float | None]  # {layer: as a share of the largest value of its change; None: it is not read}
COMPARED = 64  # layers
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


def check(
    path: str | Path,
    updates: Changes,
    family: str,
    *,
    branch: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> list[Result]:
    """Read a written file as each program does, and compare with the live updates.

    Args:
        updates: what the plugins do, by layer.
        family: one of `names.ARCHITECTURES`.
        branch: the rows of a batch that the plugin works on; other programs have no such thing.
        weights: of the layers, without the updates; needed where an update is no plain LoRA.
    """
    file = File(*read_tensors(Path(path)))
    live = {canonical(layer): update for layer, update in updates.items()}
    loras = {layer: without_mid(update) for layer, update in live.items() if isinstance(update, Update)}
    if len(loras) == len(live):
        return [
            _result(program, file, _errors(loras, lambda layer, read=read: read(file, layer, family)), branch)
            for program, read in readers.READERS[family].items()
        ]
    own = {canonical(layer): weight.detach() for layer, weight in (weights or {}).items()}
    return [
        _result(program, file, _change_errors(live, own, lambda layer, read=read: read(file, layer, family)), branch)
        for program, read in change_readers.of_family(family).items()
    ]


def lines(results: list[Result]) -> str:
    """One line for the log: where a file loads, and where not and why."""
    loads = [result for result in results if result.loads]
    names, error = ", ".join(result.program for result in loads), max((r.error for r in loads), default=0.0)
    good = f"loads in: {names} (max error {_short(error)})" if loads else "loads in: no other program"
    return "; ".join([good, *(f"not in {r.program}: {r.problem}" for r in results if not r.loads)])


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def _result(program: str, file: File, errors: Errors, branch: str | None) -> Result:
    unread = [layer for layer, error in errors.items() if error is None]
    error = max((error for error in errors.values() if error is not None), default=0.0)
    return Result(program, error, unread, _problem(program, file, errors, error, branch))


def _problem(program: str, file: File, errors: Errors, error: float, branch: str | None) -> str | None:
    unread = [layer for layer, error in errors.items() if error is None]
    if branch is not None:
        return f"it would work on every row there, and was trained on the {branch} branch"
    if len(unread) == len(errors):
        return "it reads no such names"
    if unread:
        return f"{len(unread)} of {len(errors)} layers are not read: {listing(unread, 2)}"
    if file.biased and program != "diffusers":
        return "biases are not read"
    if not error <= TOLERANCE:
        return f"its effect differs by {error:.0%}{_reason(program, file)}"
    return None


def _reason(program: str, file: File) -> str:
    """Why a DoRA differs."""
    endings = {key.rpartition(".")[2] for key in file.tensors}
    if program == "ComfyUI" and "dora_scale" in endings:
        return ", as it divides each row by the length that it has without the LoRA"
    return ", as it leaves out the magnitudes" if endings & {"dora_scale", "lora_magnitude_vector"} else ""


def _errors(live: Updates, read: Callable[[str], readers.Change | None]) -> Errors:
    found = {layer: read(layer) for layer in live}
    return {layer: None if change is None else _difference(live[layer], change) for layer, change in found.items()}


def _change_errors(
    live: Changes, weights: Mapping[str, Tensor], read: Callable[[str], change_readers.Applied | None]
) -> Errors:
    """Of `COMPARED` layers at most, as this takes whole weights; of the others, whether they are read."""
    errors: Errors = {}
    for i, (layer, update) in enumerate(live.items()):
        theirs, compared = read(layer), i % (1 + len(live) // COMPARED) == 0
        if theirs is None:
            errors[layer] = None
        else:
            errors[layer] = _whole_difference(update, theirs, weights[layer]) if compared else 0.0
    return errors


def _whole_difference(update: AnyChange, theirs: change_readers.Applied, weight: Tensor) -> float:
    weight = weight.cpu().float()
    ours = mapped(update, Tensor.cpu).applied(weight) - weight
    rest = float((theirs(weight) - weight - ours).abs().max())
    return rest / (float(ours.abs().max()) or 1.0)


def _difference(update: Update, change: readers.Change) -> float:
    """Of the two changes of the weight, each applied to a few random inputs, which takes no full matrix."""
    down, generator = update.down.float().flatten(1).cpu(), torch.Generator().manual_seed(0)
    x = torch.randn(down.shape[1], 4, generator=generator)
    if change.down.flatten(1).shape[1] != len(x) or len(change.up) != len(update.up):
        return float("inf")
    ours = update.scale * (update.up.float().flatten(1).cpu() @ (down @ x))
    theirs = change.scale * (change.up.float().flatten(1) @ (change.down.float().flatten(1) @ x))
    largest = float(ours.abs().max())
    return float((ours - theirs).abs().max()) / largest if largest else float(theirs.abs().max())
