"""What is known of a file, and how it is told."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

WIDTH = 100  # characters of a value that is shown; --json has all


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Args:
        shape: of its weight, in a model.
        rank: of its update, in a LoRA; alpha, too.
        norm: of the update, scaled by alpha / rank (Frobenius).
    """

    name: str
    parameters: int
    shape: list[int] | None = None
    rank: int | None = None
    alpha: float | None = None
    norm: float | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong with its update."""
        if self.norm is None:
            return None
        return "no numbers" if not math.isfinite(self.norm) else "changes nothing" if self.norm == 0 else None


@dataclass
class Report:
    """What a file or folder holds."""

    path: str
    kind: str  # e.g. "LoRA"
    family: str | None = None
    form: str | None = None  # whose form a LoRA has
    size: int = 0  # bytes
    sha256: str | None = None  # of files that are quick to read
    tensors: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)  # {dtype: number of tensors}
    trigger_words: str | None = None
    tags: dict[str, int] = field(default_factory=dict)  # of the captions that it was trained with, the most common
    notes: list[str] = field(default_factory=list)  # what else is worth knowing
    metadata: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)

    def json(self) -> str:
        """All of it for programs; what is no number is null."""
        values: dict[str, Any] = asdict(self) | {"blocks": dict(blocks(layer.name for layer in self.layers))}
        for layer, own in zip(values["layers"], self.layers, strict=True):
            layer["problem"] = own.problem
            layer["norm"] = own.norm if own.norm is not None and math.isfinite(own.norm) else None
        return json.dumps(values, indent=2, ensure_ascii=False)

    def lines(self, *, layers: bool = False) -> Iterator[str]:
        """All of it for people.

        Args:
            layers: each of them, and not only their number in each block.
        """
        rows: list[tuple[str, Any]] = [
            ("file", self.path),
            ("kind", ", ".join(filter(None, (self.kind, self.family, self.form and f"in {self.form}'s form")))),
            ("size", f"{_bytes(self.size)}, {self.tensors:,} tensors, {self.parameters:,} parameters"),
            ("dtype", ", ".join(f"{name} ({count})" for name, count in self.dtypes.items())),
            ("sha256", self.sha256),
            ("trigger words", self.trigger_words),
            ("tags", ", ".join(f"{tag} ({count})" for tag, count in self.tags.items())),
            *self._updates(),
            *(("note", note) for note in self.notes),
        ]
        yield from (f"{name:<14} {value}" for name, value in rows if value)
        if self.layers:
            yield f"{'layers':<14} {len(self.layers)}"
            named = blocks(layer.name for layer in self.layers)
            yield from map(_layer_line, self.layers) if layers else (f"  {name:<58} {n:>5}" for name, n in named)
        if self.metadata:
            yield "metadata"
            yield from (f"  {key}: {_short(value)}" for key, value in sorted(self.metadata.items()))

    def _updates(self) -> Iterator[tuple[str, Any]]:
        yield "rank", _counted(layer.rank for layer in self.layers)
        yield "alpha", _counted(layer.alpha for layer in self.layers)
        norms = [layer.norm for layer in self.layers if layer.norm is not None and math.isfinite(layer.norm)]
        if norms:
            largest = max(self.layers, key=lambda layer: layer.norm if layer.norm in norms else -1.0)
            yield "effect", f"norm {median(norms):.3g} (median), {max(norms):.3g} (largest, {largest.name})"
        problems = Counter(layer.problem for layer in self.layers if layer.problem)
        for problem, text in (("changes nothing", "change nothing"), ("no numbers", "have values that are no numbers")):
            if count := problems[problem]:
                yield "note", f"{count} of {len(self.layers)} layers {text}"


def blocks(names: Iterable[str]) -> list[tuple[str, int]]:
    """[(blocks, number of layers in each)]; neighbours with as many are told together, as `blocks.0 to 5, each`."""
    counts: dict[tuple[str, int | None], int] = Counter()
    for name in names:
        found = re.match(r"(.+?)\.(\d+)(?:\.|$)", name)
        counts[(found[1], int(found[2])) if found else (name, None)] += 1
    result: list[tuple[str, int, int | None, int | None]] = []
    for (prefix, number), count in counts.items():
        last = result[-1] if result else None
        if last and number is not None and last[:2] == (prefix, count) and last[3] == number - 1:
            result[-1] = (*last[:3], number)
        else:
            result.append((prefix, count, number, number))
    return [(_numbered(prefix, first, last), count) for prefix, count, first, last in result]


def _numbered(prefix: str, first: int | None, last: int | None) -> str:
    if first is None:
        return prefix
    return f"{prefix}.{first}" if first == last else f"{prefix}.{first} to {last}, each"


def _layer_line(layer: LayerReport) -> str:
    parts = [f"  {layer.name:<84}"]
    if layer.shape is not None:
        parts.append("x".join(map(str, layer.shape)))
    if layer.rank is not None:
        parts.append(f"rank {layer.rank}, alpha {layer.alpha:g}")
    if layer.norm is not None:
        parts.append(f"norm {layer.norm:.3g}")
    return " ".join([*parts, *([layer.problem] if layer.problem else [])])


def _counted(values: Iterable[float | None]) -> str:
    counts = Counter(value for value in values if value is not None)
    if len(counts) > 4:
        return f"{min(counts):g} to {max(counts):g}"
    return ", ".join(
        f"{value:g}" + (f" ({count} layers)" if len(counts) > 1 else "") for value, count in counts.items()
    )


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}... ({len(text)} characters)"
