"""A LoRA apart from any file: {layer: Update}. What the forms have in common, and how layers are joined and parted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from hcpdiff.formats.metadata import data_hash
from hcpdiff.formats.tensor_files.reading import safetensors
from hcpdiff.formats.tensor_files.writing import contents, given, write

# How programs call the tensors of one layer.
SUFFIXES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "bias",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".alpha": "alpha",
}
BUNDLE = "bundle_emb."  # begins the keys of learned words within a LoRA; see `word_files`


@dataclass(frozen=True)
class Update:
    """What is added to one layer's weight: alpha / rank * up @ down.

    Args:
        down: (rank, in) or (rank, in, k, k).
        up: (out, rank) or (out, rank, 1, 1).
        alpha: None is the rank.
        mid: (rank, rank, k, k) between the two, which then have no k (Tucker's decomposition).
        bias: (out,), added to the bias, times alpha / rank.
    """

    plain: ClassVar[bool] = True

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def delta(self) -> Tensor:
        """The whole change of the weight, in float32: (out, in) or (out, in, k, k)."""
        plain = without_mid(self)
        update = plain.up.float().flatten(1) @ plain.down.float().flatten(1)
        return (self.scale * update).view(len(plain.up), *plain.down.shape[1:])

    def applied(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """`weight` with this change, in float32 and the shape of `weight`."""
        return weight.float() + strength * self.delta().view(weight.shape)

    def applied_bias(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        """The same for the layer's bias; None where it has none and gets none."""
        if self.bias is None:
            return None if bias is None else bias.float()
        change = strength * self.scale * self.bias.float()
        return change if bias is None else bias.float() + change

    def num_rows(self) -> int:
        """Of the weight."""
        return len(self.up)

    def rows(self, start: int, stop: int) -> Update:
        """The change of these rows of the weight alone."""
        plain = without_mid(self)
        bias = None if self.bias is None else self.bias[start:stop]
        return replace(plain, up=plain.up[start:stop].contiguous(), bias=bias)


Updates = Mapping[str, Update]


def folded(update: Update) -> Update:
    """The same change with alpha in the matrices, so that it is the rank, which many readers take it to be."""
    if update.scale == 1:
        return replace(update, alpha=None)
    bias = None if update.bias is None else update.bias * update.scale
    return replace(update, up=update.up * update.scale, alpha=None, bias=bias)


def with_one_alpha(updates: Updates) -> dict[str, Update]:
    """The same changes with the most common alpha everywhere; where another one was, it is in the matrices.

    diffusers loses alphas that differ between the attention layers of a UNet.
    """
    alphas = Counter(float(update.rank if update.alpha is None else update.alpha) for update in updates.values())
    alpha = alphas.most_common(1)[0][0] if alphas else 1.0
    return {layer: _with_alpha(update, alpha) for layer, update in updates.items()}


def _with_alpha(update: Update, alpha: float) -> Update:
    if update.scale == alpha / update.rank:
        return replace(update, alpha=alpha)
    return replace(update, up=update.up * (update.scale * update.rank / alpha), alpha=alpha)


def without_mid(update: Update) -> Update:
    """The same change in two matrices instead of three."""
    if update.mid is None:
        return update
    down = torch.einsum("rskl,si->rikl", update.mid.float(), update.down.float().flatten(1))
    return replace(update, down=down, mid=None)


def fuse(parts: Sequence[Update | None], shares: Sequence[int]) -> Update:
    """One update of a layer whose rows are those of several layers beside each other, as of q, k and v.

    The rank becomes the sum and alpha / rank stays, so alpha is multiplied too.

    Args:
        parts: in the order of the rows; None changes nothing.
        shares: the rows of each part, in widths of the layers' input.

    Raises:
        ValueError: a part has a bias or is no linear layer's.
    """
    present = [without_mid(part) for part in parts if part is not None]
    if any(part.bias is not None or part.down.ndim != 2 for part in present):
        raise ValueError("fuse: only updates of linear layers without a bias can be joined")
    if len({part.scale for part in present}) > 1:
        present = [folded(part) for part in present]
    first, scale = present[0], present[0].scale
    rows = [share * first.down.shape[1] for share in shares]
    if len(present) == len(parts) and all(torch.equal(part.down, first.down) for part in present):
        return Update(first.down, torch.cat([part.up for part in present]), first.alpha)
    rank = sum(part.rank for part in present)
    up = first.up.new_zeros(sum(rows), rank)
    waiting, row, column = iter(present), 0, 0
    for part, size in zip(parts, rows, strict=True):
        if part is not None:
            update = next(waiting)
            up[row : row + size, column : column + update.rank] = update.up
            column += update.rank
        row += size
    return Update(torch.cat([part.down for part in present]), up, None if scale == 1 else scale * rank)


def split(update: Update, shares: Sequence[int]) -> list[Update]:
    """Inverse of `fuse`: the updates of the layers beside each other.

    Where they have columns of their own, equally many each, they get these; else all share `down`.

    Raises:
        ValueError: the rows cannot be parted like this.
    """
    update = without_mid(update)
    unit, left = divmod(len(update.up), sum(shares))
    if left:
        raise ValueError(f"a fused layer has {len(update.up)} rows, which do not divide by {sum(shares)}")
    ups = update.up.split([share * unit for share in shares])
    rank, left = divmod(update.rank, len(shares))
    own = [slice(i * rank, (i + 1) * rank) for i in range(len(shares))]
    if left or any(_elsewhere(up, columns) for up, columns in zip(ups, own, strict=True)):
        return [replace(update, up=up.contiguous()) for up in ups]
    alpha = None if update.alpha is None else update.alpha / len(shares)
    pairs = zip(ups, own, strict=True)
    return [Update(update.down[columns].contiguous(), up[:, columns].contiguous(), alpha) for up, columns in pairs]


def _elsewhere(up: Tensor, columns: slice) -> bool:
    return bool(up[:, : columns.start].any() or up[:, columns.stop :].any())


def listing(names: Iterable[str], most: int = 20) -> str:
    """The names, at most so many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a file has besides learned words, and the words that are bundled with it."""
    words = {key: tensor for key, tensor in tensors.items() if key.startswith(BUNDLE)}
    return {key: tensor for key, tensor in tensors.items() if key not in words}, words


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    weights = safetensors([path])
    return {key: weights.read(key) for key in weights.tensors}, dict(weights.metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], *, hashed: bool = False
) -> None:
    """Write a safetensors file; it appears only when it is complete.

    Args:
        hashed: say the hash of its tensors in the header.
    """
    own = given(tensors)
    write(path, own, {**header, **data_hash(contents(own))} if hashed else header)
