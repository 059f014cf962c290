"""`hcpdiff resize`: a LoRA of a smaller rank that does as nearly the same as can be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from hcpdiff.formats.convert import DROPPED, write
from hcpdiff.formats.lora_files import Update, listing, without_mid
from hcpdiff.formats.names import architecture
from hcpdiff.tools.lora import check_new, read_lora
from hcpdiff.tools.low_rank import Target, refactorise


@dataclass(frozen=True)
class Resized:
    """What was written.

    Args:
        ranks: by layer.
        error: of all changes together: the norm of what is missing, as a share of that of the whole.
    """

    path: Path
    ranks: dict[str, int]
    error: float


def resize(
    path: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    family: str | None = None,
) -> Resized:
    """Write a LoRA with fewer ranks, in the form that it has. Its scale, alpha / rank, stays.

    Args:
        path: any LoRA file, or a folder of PEFT.
        out: a new file, or a new folder if `path` is one.
        rank: of every layer that has more.
        energy: instead, keep of each layer this share of its squared singular values.
        family: one of `names.ARCHITECTURES`; None finds out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no LoRA, or would not become smaller. Nothing is written then.
    """
    target, out = Target(rank, energy), check_new(out, path)
    read = read_lora(path, family)
    loras = {layer: update for layer, update in read.updates.items() if isinstance(update, Update)}
    if others := [layer for layer in read.updates if layer not in loras]:
        raise ValueError(f"{path}: {len(others)} of {len(read.updates)} layers are no LoRA: {listing(others, 3)}")
    largest = max(update.rank for update in loras.values())
    if rank is not None and rank >= largest:
        raise ValueError(f"rank: {rank} is not below {largest}, the largest rank in {path}")
    kept = total = 0.0
    updates: dict[str, Update] = {}
    for layer, update in loras.items():
        updates[layer], own, whole = _smaller(update, target)
        kept, total = kept + own, total + whole
    ranks = {layer: update.rank for layer, update in updates.items()}
    if ranks == {layer: update.rank for layer, update in loras.items()}:
        raise ValueError(f"energy: to keep {energy:g} of it, {path} needs every rank that it has; use less")
    arch = architecture(read.family)
    form = arch.form if read.form == "original" else read.form
    header = {key: value for key, value in read.header.items() if key not in DROPPED and "hash" not in key}
    write(out, updates, arch, form, {**header, **_sizes(updates, header), "format": "pt"}, words=read.words)
    return Resized(out, ranks, (max(total - kept, 0.0) / total) ** 0.5 if total else 0.0)


def _smaller(update: Update, target: Target) -> tuple[Update, float, float]:
    """The update, and how much of the squared norm of its effect is kept, and was there."""
    whole = without_mid(update)
    up, down = whole.up.float().flatten(1), whole.down.float().flatten(1)
    factors = refactorise(up, down, target)
    scale, rank = update.scale**2, len(factors.down)
    if rank >= update.rank:
        return update, factors.total * scale, factors.total * scale
    alpha = None if update.scale == 1 else update.scale * rank
    new = replace(
        whole,
        up=factors.up.to(whole.up.dtype).view(len(up), rank, *whole.up.shape[2:]),
        down=factors.down.to(whole.up.dtype).view(rank, *whole.down.shape[1:]),
        alpha=alpha,
    )
    return new, factors.kept * scale, factors.total * scale


def _sizes(updates: dict[str, Update], header: dict[str, str]) -> dict[str, str]:
    """kohya's fields of rank and alpha, where the header has them."""
    values = {
        "ss_network_dim": Counter(update.rank for update in updates.values()),
        "ss_network_alpha": Counter(update.scale * update.rank for update in updates.values()),
    }
    return {
        key: f"{next(iter(found)):g}" if len(found) == 1 else "Dynamic"
        for key, found in values.items()
        if key in header
    }
