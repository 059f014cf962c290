"""What a piece of code costs: time, aten calls, memory. Contestants are timed by turns, in one run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AtenCalls(TorchDispatchMode):
    """Counts the operators that reach the backend, backward included: each is a kernel launch or a view."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


class PeakMemory(TorchDispatchMode):
    """The most bytes alive at once in storages that were made inside; the same on every device and in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(x.untyped_storage()).cdata for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        for x in tree_leaves(result):
            if torch.is_tensor(x):
                storage = x.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in given and not x.is_meta:
                    self.live[reference.cdata] = (reference, storage.nbytes())
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps for backward, each storage once, parameters not counted."""
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.nn.Parameter) and not isinstance(x._base, torch.nn.Parameter):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = forward()
    del output
    return sum(kept.values())


def take_turns(runs: Sequence[Callable[[], object]], rounds: int, device: str = "cpu") -> list[float]:
    """The least seconds of each run: process time on the CPU, which other programs disturb less; wall time else."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = [float("inf")] * len(runs)
    for run in runs:
        run()
    for _ in range(rounds):
        for i, run in enumerate(runs):
            start = clock()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            best[i] = min(best[i], clock() - start)
    return best


def table(names: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """The rows with the ratio of the first contestant to the second."""
    lines = [f"{'':26}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>8}"]
    for title, values in rows.items():
        lines.append(f"{title:26}" + "".join(f"{value:12.4g}" for value in values) + f"{values[0] / values[1]:8.3f}")
    return "\n".join(lines)
