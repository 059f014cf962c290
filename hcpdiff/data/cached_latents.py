"""Latents of a dataset's images, computed once, with the loss masks and condition images that belong to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hcpdiff.data.cache import Table, content_key
from hcpdiff.data.samples import Samples
from hcpdiff.data.scan import BadFile, attempt
from hcpdiff.data.sources.base import Record
from hcpdiff.data.transforms import Cut, image_tensor
from hcpdiff.data.views import View
from hcpdiff.randomness import generator
from hcpdiff.types import Batch, Prompt, SizeInfo

# (B, 3, H, W) in [-1, 1] -> (mean, std) of the latents, each (B, C, h, w), scaled for the denoiser
ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]

_INPUT = "input."  # fields of condition images


class CachedLatents:
    """The distribution of each image's latents, in each of its variants; every showing draws from it anew.

    Args:
        samples: of the dataset; its views are countable.
        folder: where the table lies; None: in memory.
        fingerprint: of all that decides latents besides the pixels: weights and dtype of the VAE.
    """

    def __init__(self, samples: Samples, folder: Path | None, fingerprint: str) -> None:
        self.samples = samples
        self.table = Table(None if folder is None else folder / "latents" / content_key(fingerprint))
        self.bad: list[BadFile] = []
        self._keys: list[list[str]] = []  # item -> variant -> key in the table
        self._sizes: list[list[SizeInfo]] = []
        settings = _settings(samples.transforms, durable=folder is not None)
        for item, key in enumerate(samples.items.keys):
            views = [samples.variant_view(item, variant) for variant in range(samples.views.countable or 0)]
            content = attempt(lambda item=item: _fingerprint(samples, item), key, self.bad)
            self._keys.append([_key(content, view, settings) for view in views])
            self._sizes.append([view.size for view in views])

    def __len__(self) -> int:
        """Images and their variants, without those that cannot be read."""
        return sum(key in self.table for keys in self._keys for key in keys)

    def fill(
        self,
        encode_image: ImageEncoder,
        *,
        batch_size: int = 8,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Encode what is missing, and say how many images that were. Files that cannot be read go to `bad`.

        Args:
            progress: called with how many images are done, and how many there are to do.
        """
        parts, count, seen = self._missing(batch_size), 0, 0
        total = sum(map(len, parts))
        loader = DataLoader(_Cuts(self.samples, parts), batch_size=None, num_workers=workers)
        for part, (cuts, bad) in zip(parts, loader, strict=True):
            self.bad += bad
            works = [(item, variant, cut) for (item, variant), cut in zip(part, cuts, strict=True) if cut is not None]
            if works:
                keys = [self._keys[item][variant] for item, variant, _ in works]
                self._add(keys, [cut for _, _, cut in works], encode_image)
                count += len(works)
            seen += len(part)
            if progress is not None:
                progress(seen, total)
        self.table.flush()
        return count

    def batch(self, epoch: int, rows: Sequence[int]) -> Batch:
        """The batch of these samples in this epoch, without conditioning."""
        shown = [self.samples.first_that_works(epoch, row, lambda row: self._lookup(epoch, row), []) for row in rows]
        keys = [key for key, _, _, _ in shown]
        seed, purpose = self.samples.seed, f"{self.samples.name}/latents"
        return Batch(
            keys=[name for _, name, _, _ in shown],
            prompts=[prompt for _, _, prompt, _ in shown],
            sizes=[size for _, _, _, size in shown],
            images=self._draw(keys, [generator(seed, purpose, epoch, row) for row in rows]),
            encoded=True,
            loss_mask=self._loss_mask(keys),
            inputs=self._inputs(keys),
        )

    def _missing(self, batch_size: int) -> list[list[tuple[int, int]]]:
        """(item, variant) of all that the table lacks, each content once, in batches of one size."""
        by_target: dict[tuple[int, int], list[tuple[int, int]]] = {}
        unreadable = {file.key for file in self.bad}
        known: set[str] = set()
        for item, keys in enumerate(self._keys):
            for variant, key in enumerate(keys):
                if key not in known and key not in self.table and self.samples.items.keys[item] not in unreadable:
                    known.add(key)
                    by_target.setdefault(self.samples.target(item), []).append((item, variant))
        return [todo[i : i + batch_size] for todo in by_target.values() for i in range(0, len(todo), batch_size)]

    def _add(self, keys: Sequence[str], cuts: Sequence[Cut], encode_image: ImageEncoder) -> None:
        images = torch.stack([image_tensor(cut.image) for cut in cuts])
        with torch.no_grad():
            mean, std = (latents.cpu() for latents in encode_image(images))
        for row, (key, cut) in enumerate(zip(keys, cuts, strict=True)):
            fields = {"mean": mean[row], "std": std[row]}
            if cut.loss_mask is not None:
                mask = torch.tensor(cut.loss_mask)[None, None]
                fields["loss_mask"] = F.adaptive_avg_pool2d(mask, (mean.shape[-2], mean.shape[-1]))[0]
            for name, picture in cut.inputs.items():
                fields[_INPUT + name] = torch.tensor(picture).permute(2, 0, 1).contiguous()
            self.table.add(key, fields)

    def _lookup(self, epoch: int, row: int) -> tuple[str, str, Prompt, SizeInfo]:
        samples = self.samples
        item, variant = int(samples.item_of[row]), samples.variant(epoch, row)
        key = self._keys[item][variant]
        if key not in self.table:
            raise ValueError("its latents could not be computed")
        return key, samples.items.keys[item], samples.prompt(epoch, row), self._sizes[item][variant]

    def _draw(self, keys: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
        mean, std = self.table.column("mean", keys), self.table.column("std", keys)
        noise = torch.empty(mean.shape, dtype=torch.float32)
        for row, source in zip(noise, generators, strict=True):
            row.normal_(generator=source)
        return torch.addcmul(mean, std, noise.to(mean.dtype))

    def _loss_mask(self, keys: Sequence[str]) -> Tensor | None:
        masked = ["loss_mask" in self.table.fields(key) for key in keys]
        if all(masked):
            return self.table.column("loss_mask", keys)
        if not any(masked):
            return None
        rows = [self.table.row(key) for key in keys]
        return torch.stack([row.get("loss_mask", torch.ones(1, *row["mean"].shape[-2:])) for row in rows])

    def _inputs(self, keys: Sequence[str]) -> dict[str, Tensor]:
        names = [name for name in self.table.fields(keys[0]) if name.startswith(_INPUT)]
        return {name.removeprefix(_INPUT): self.table.column(name, keys).float().div_(255) for name in names}


class _Cuts(torch.utils.data.Dataset):
    """Batches of decoded images, for the processes that help to fill the cache."""

    def __init__(self, samples: Samples, parts: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.samples = samples
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[list[Cut | None], list[BadFile]]:
        samples, bad, cuts = self.samples, [], []
        for item, variant in self.parts[number]:
            view = samples.variant_view(item, variant)
            cuts.append(attempt(lambda item=item, view=view: samples.cut(item, view), samples.items.keys[item], bad))
        return cuts, bad


def _fingerprint(samples: Samples, item: int) -> str:
    """Of the content of an item: by its source, or else of its pixels."""
    source, local = samples.sources[samples.items.source[item]], int(samples.items.local[item])
    by_source: Callable[[int], str] | None = getattr(source, "fingerprint", None)
    return _hash_pixels(source.load(local)) if by_source is None else by_source(local)


def _hash_pixels(record: Record) -> str:
    parts = {"image": record.image, "loss_mask": record.loss_mask, **record.inputs}
    digest = hashlib.blake2b(digest_size=16)
    for name, picture in parts.items():
        pixels = np.ascontiguousarray(picture if picture is not None else [])
        digest.update(repr((name, pixels.shape, pixels.dtype)).encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _key(content: str | None, view: View, settings: str) -> str:
    return content_key(content, view.size, view.flip, view.seed, settings)


def _settings(transforms: object, *, durable: bool) -> str:
    """What identifies the user's transforms."""
    if transforms is None:
        return ""
    if durable and " at 0x" in repr(transforms):
        raise ValueError(
            "transforms: a cache on disk cannot tell when they change; give them a __repr__ that shows their settings, "
            'or use cache_latents: "memory"'
        )
    return repr(transforms)
