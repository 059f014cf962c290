"""`hcpdiff merge`: other models mixed into a base, and adapters added to it, written as a new model.

Of a tensor W, with parts W_i of strengths s_i and adapters of changes D_j and strengths t_j, it makes

    s W + sum_i s_i W_i + sum_j t_j D_j

in float32. s is the base's strength, or what the parts leave of 1; where no part is mixed in, the base stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import hcpdiff
from hcpdiff.config import build, load, require
from hcpdiff.formats.changes import Changes
from hcpdiff.formats.lora_files import listing
from hcpdiff.formats.tensor_files.dtypes import as_dtype, dtype_name
from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.models.hub import PACKAGED
from hcpdiff.tools.lora import read_lora
from hcpdiff.tools.model_files import ModelFiles, layer_of, open_like, open_model
from hcpdiff.tools.model_writing import write_like
from hcpdiff.tools.selecting import strengths
from hcpdiff.tools.settings import MergeAdapter, MergePart, MergeSettings

log = logging.getLogger("hcpdiff.tools")


@dataclass(frozen=True)
class Merged:
    """What a merge has written."""

    path: Path
    changed: list[str]  # layers


def merge_config(cfg: str | Path, overrides: Sequence[str] = (), *, trust: Sequence[str] = ()) -> Merged:
    """Merge what the `merge` section of a config says.

    Raises:
        ConfigError: listing every mistake in the config.
    """
    config = load(cfg, overrides, trust)
    require(config, "merge")
    return merge(build(config, "merge"))


def merge(settings: MergeSettings) -> Merged:
    """Write the base with parts mixed in and adapters added. All other tensors stay bit by bit what they are.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files do not fit together, or a selector matches nothing. Nothing is written then.
    """
    plan = Plan(settings)
    out = Path(settings.out).expanduser()
    count = sum(len(weights.tensors) for weights in plan.base.files.values())
    with tqdm(total=count, desc="merge", unit="tensor", dynamic_ncols=True, leave=False) as bar:

        def given(part: str, key: str) -> Given:
            stored = plan.base.files[part].tensors[key]
            return Given(plan.dtype_of(part, key), stored.shape, lambda: tensor(part, key))

        def tensor(part: str, key: str) -> Tensor:
            bar.update()
            return plan.tensor(part, key)

        write_like(plan.base, out, given, _header(plan), dtype=plan.dtype, shard_size=settings.shard_size)
    if unbalanced := plan.unbalanced():
        log.warning(
            "merge: the strengths of the base and its parts do not add up to 1 for %d layers: %s",
            len(unbalanced),
            listing(unbalanced, 3),
        )
    return Merged(out, list(dict.fromkeys(map(layer_of, plan.changed))))


def check(settings: MergeSettings) -> None:
    """Raise what `merge` would raise before it reads weights; not for a base that would have to be downloaded."""
    base = Path(settings.base).expanduser()
    if base.exists() or len(base.parts) != 2 or base.parts[0] == PACKAGED:
        Plan(settings)


class Plan:
    """A merge whose files are opened and found to fit together; no weights of models are read yet."""

    def __init__(self, settings: MergeSettings) -> None:
        with _at("merge.base"):
            self.base = open_model(settings.base)
        self.settings = settings
        self.dtype: torch.dtype | None = as_dtype(settings.dtype) if settings.dtype else None
        _check_out(Path(settings.out).expanduser(), self.base)
        self.parts = [_Mixed(self.base, name, part) for name, part in settings.parts.items()]
        self.adapters = [_Added(self.base, name, adapter) for name, adapter in settings.adapters.items()]
        sources = (*self.parts, *self.adapters)
        self.changed = {name: [s for s in sources if name in s.strengths] for name in self.base.places}
        self.changed = {name: found for name, found in self.changed.items() if found}

    def dtype_of(self, part: str, key: str) -> torch.dtype:
        """What `tensor` will give."""
        stored = self.base.files[part].tensors[key].dtype
        return self.dtype or stored if stored.is_floating_point else stored

    def tensor(self, part: str, key: str) -> Tensor:
        """A tensor of the new model, for the place of that in the base."""
        stored, dtype = self.base.files[part].read(key), self.dtype_of(part, key)
        names = [name for name in self.base.users.get((part, key), ()) if name in self.changed]
        if not names:
            result = stored.to(dtype)
            return _finite(result, key, stored) if result.dtype != stored.dtype else result
        result = stored.float()
        for name in names:
            source = self.base.places[name].source
            own = result if source.rows is None else result[slice(*source.rows)]
            own.copy_(source.give(self._made(name, source.take(own))).reshape(own.shape))
        return _finite(result.to(dtype), key)

    def unbalanced(self) -> list[str]:
        """Layers where the strengths of models do not add up to 1."""
        names = [name for name in self.changed if self._mixed(name)]
        sums = {name: self._share(name) + sum(part.strengths[name] for part in self._mixed(name)) for name in names}
        return list(dict.fromkeys(layer_of(name) for name, total in sums.items() if abs(total - 1) > 1e-6))

    def _made(self, name: str, value: Tensor) -> Tensor:
        mixed = self._mixed(name)
        if mixed:
            value = value * self._share(name)
        for source in self.changed[name]:
            value = source.add_to(name, value)
        return value

    def _mixed(self, name: str) -> list[_Mixed]:
        return [source for source in self.changed[name] if isinstance(source, _Mixed)]

    def _share(self, name: str) -> float:
        if self.settings.strength is not None:
            return self.settings.strength
        return 1 - sum(part.strengths[name] for part in self._mixed(name))


class _Mixed:
    """A model that is mixed in: {tensor: strength}."""

    def __init__(self, base: ModelFiles, name: str, part: MergePart) -> None:
        where = f"merge.parts.{name}"
        with _at(where):
            self.model = open_like(part.path, base)
        chosen = strengths(self.model.layers(), part.layers, part.strength, f"{where}.layers")
        floating = [name for name in self.model.places if self.model.entry(name).dtype.is_floating_point]
        wanted = [name for name in floating if layer_of(name) in chosen]
        missing = [name for name in wanted if name not in base.places]
        shapes = {
            name: (self.model.entry(name).shape, base.entry(name).shape) for name in wanted if name not in missing
        }
        other = [f"{name} {one} for {two}" for name, (one, two) in shapes.items() if one != two]
        for what, names in (("the base does not have", missing), ("have another shape in the base", other)):
            if names:
                raise ValueError(
                    f"{where}: {part.path}: {len(names)} of {len(wanted)} tensors {what}: {listing(names)}"
                    "; choose others by layers, or another base"
                )
        self.strengths = {name: chosen[layer_of(name)] for name in wanted}

    def add_to(self, name: str, value: Tensor) -> Tensor:
        return value.add_(self.model.get(name), alpha=self.strengths[name])


class _Added:
    """An adapter: {tensor: strength}."""

    def __init__(self, base: ModelFiles, name: str, adapter: MergeAdapter) -> None:
        self.where = f"merge.adapters.{name}"
        if base.family is None:
            raise ValueError(f"{self.where}: adapters of models such as {base.path} are not known as files")
        with _at(self.where):
            self.updates: Changes = read_lora(adapter.path, base.family).updates
        missing = [layer for layer in self.updates if f"{layer}.weight" not in base.places]
        if missing:
            raise ValueError(
                f"{self.where}: {adapter.path}: the base has no such layer for {len(missing)} of {len(self.updates)}: "
                f"{listing(missing)}"
            )
        chosen = strengths(list(self.updates), adapter.layers, adapter.strength, f"{self.where}.layers")
        biased = [layer for layer in chosen if self.updates[layer].applied_bias(None) is not None]
        if lost := [layer for layer in biased if f"{layer}.bias" not in base.places]:
            raise ValueError(
                f"{self.where}: {adapter.path}: {len(lost)} layers have no bias in the base: {listing(lost)}"
            )
        self.strengths = {f"{layer}.weight": strength for layer, strength in chosen.items()}
        self.strengths |= {f"{layer}.bias": chosen[layer] for layer in biased}

    def add_to(self, name: str, value: Tensor) -> Tensor:
        update, strength = self.updates[layer_of(name)], self.strengths[name]
        if name.endswith(".bias"):
            biased = update.applied_bias(value, strength)
            assert biased is not None, name
            return biased
        try:
            return update.applied(value, strength)
        except RuntimeError as error:
            raise ValueError(
                f"{self.where}: {name} has shape {tuple(value.shape)} in the base, which the adapter's does not fit: "
                f"{error}"
            ) from None


def _header(plan: Plan) -> dict[str, str]:
    settings = plan.settings
    sources = [plan.base.path, *(source.path for source in (*settings.parts.values(), *settings.adapters.values()))]
    names = ", ".join(Path(source).expanduser().resolve().name for source in sources)
    return {"format": "pt", "modelspec.merged_from": names, "hcpdiff.version": hcpdiff.__version__}


def _check_out(out: Path, base: ModelFiles) -> None:
    if out.resolve() == base.path.resolve():
        raise ValueError(f"merge.out: {out} is the base; name another")
    if out.exists():
        raise ValueError(f"merge.out: {out} is there already and is not overwritten; remove it, or name another")
    if base.layout is not None and out.suffix != ".safetensors":
        raise ValueError(f"merge.out: {out}: of a single file a single file is made; let its name end in .safetensors")
    if base.layout is None and out.suffix in (".safetensors", ".ckpt"):
        raise ValueError(f"merge.out: {out}: of a folder a folder is made; name one")


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Errors of what is done inside begin with the key that they are about."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _finite(tensor: Tensor, key: str, before: Tensor | None = None) -> Tensor:
    """The tensor, if its values are numbers, or were none before."""
    if not _all_numbers(tensor) and (before is None or _all_numbers(before)):
        raise ValueError(
            f"merge: {key} would have values that are no numbers in {dtype_name(tensor.dtype)}; look at the files with "
            "`hcpdiff inspect`, or use another dtype"
        )
    return tensor


def _all_numbers(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all())
