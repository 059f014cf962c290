"""Latents of a dataset's images, computed once, with the loss masks and condition images that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hcpdiff.data.cache import ALONE, KEY_BYTES, Key, Team, content_key, fill
from hcpdiff.data.cache.contents import contents
from hcpdiff.data.cache.normals import normals
from hcpdiff.data.cache.shared import shared_table
from hcpdiff.data.images.cutting import Cut, image_tensor
from hcpdiff.data.samples import Samples
from hcpdiff.data.scan import BadFile, attempt
from hcpdiff.randomness import derive
from hcpdiff.types import Batch, SizeInfo

# (B, 3, H, W) in [-1, 1] -> (mean, std) of the latents, each (B, C, h, w), scaled for the denoiser
ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]
Work = tuple[int, int]  # (item, variant)

_INPUT = "input."  # fields of condition images
_ENCODED = "encoded."  # fields of condition images that are latents
_AT_ONCE = 1 << 16  # numbers of noise; about what a processor's cache holds


class CachedLatents:
    """The distribution of each image's latents, in each of its variants; every showing draws from it anew.

    Args:
        samples: of the dataset; its views are countable.
        folder: where the table lies; None: in memory.
        fingerprint: of all that decides latents besides the pixels: weights and dtype of the VAE.
        encoded_inputs: condition images that become latents too (their mean, with nothing drawn), as
            `inputs["<name>_latents"]`; others stay images.
        about: what encodes, in words.
        team: the processes that fill it together; each has all of it then.

    Raises:
        ValueError: a source has no images, or a cache on disk could not tell when the transforms change.
    """

    def __init__(
        self,
        samples: Samples,
        folder: Path | None,
        fingerprint: str,
        *,
        encoded_inputs: Collection[str] = (),
        about: str = "",
        team: Team = ALONE,
    ) -> None:
        if not all(getattr(source, "has_images", True) for source in samples.sources):
            raise ValueError("cache_latents: a source of prompts alone has no images to encode; set it to false")
        self.samples = samples
        self.encoded_inputs = sorted(encoded_inputs)
        self.team = team
        self.bad: list[BadFile] = []
        settings = _settings(samples.transforms, self.encoded_inputs, durable=folder is not None)
        path = None if folder is None else folder / "latents" / content_key(fingerprint).hex()
        self.table, self._settled = shared_table(path, about, team)
        self._describe(contents(samples, self.bad), settings)
        self._look_up()

    def __len__(self) -> int:
        """Images and their variants, without those that cannot be read."""
        return int((self._numbers >= 0).sum())

    @property
    def keys(self) -> set[Key]:
        """Of the rows that this dataset needs."""
        return {key.tobytes() for key in self._keys[self._exists]}

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
            batch_size: images to encode at once.
            workers: processes that decode images.
            progress: called with how many images are done, and how many there are to do.
        """

        def missing() -> list[list[Work]]:
            self._look_up()
            return self._missing(batch_size)

        def work(parts: Sequence[list[Work]]) -> Iterator[int]:
            return self._encode(parts, encode_image, workers)

        lacking = sum(map(len, missing()))
        fill(self.table, missing, work, team=self.team, progress=progress)
        still = sum(map(len, missing()))
        self._settled()
        return lacking - still - len(self._bad_works)

    def batch(self, epoch: int, rows: Sequence[int]) -> Batch:
        """The batch of these samples in this epoch, without conditioning."""
        samples = self.samples
        shown = list(rows)
        places = self._places(epoch, shown)
        for i in np.flatnonzero(self._numbers[places] < 0).tolist():
            shown[i] = samples.first_that_works(epoch, shown[i], partial(self._check, epoch), [])
            places = self._places(epoch, shown)
        items = places[0].tolist()
        numbers = self._numbers[places].tolist()
        purpose = f"{samples.name}/latents"
        return Batch(
            keys=[samples.items.key(item) for item in items],
            prompts=[samples.prompt(epoch, row) for row in shown],
            sizes=self._sizes(places),
            images=self._draw(numbers, [derive(samples.seed, purpose, epoch, row) for row in rows]),
            encoded=True,
            loss_mask=self._loss_mask(numbers),
            inputs=self._inputs(numbers),
        )

    def _describe(self, known: Sequence[str | None], settings: str) -> None:
        """What there is of each item and variant: whether it can be read, its key, and how it is cut."""
        shape = len(known), self.samples.variants or 0
        self._exists = np.zeros(shape, dtype=bool)
        self._keys = np.zeros((*shape, KEY_BYTES), dtype=np.uint8)
        self._cuts = np.zeros((*shape, 6), dtype=np.int32)  # crop, target and scaled, of each the height first
        for item, content in enumerate(known):
            for variant in self.samples.variants_of(item) if content is not None else ():
                view = self.samples.variant_view(item, variant)
                self._exists[item, variant] = True
                self._keys[item, variant] = np.frombuffer(content_key(content, view, settings), dtype=np.uint8)
                self._cuts[item, variant] = (*view.size.crop, *view.size.target, *view.size.scaled)

    def _look_up(self) -> None:
        self._numbers = self.table.find(self._keys)  # (items, variants), -1 where there is none

    def _places(self, epoch: int, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The items of samples, and which variants of them they show in this epoch."""
        samples = self.samples
        alike = samples.variants == 1
        variants = np.zeros(len(rows), dtype=np.int64) if alike else [samples.variant(epoch, row) for row in rows]
        return samples.item_of[rows], np.asarray(variants)

    def _check(self, epoch: int, row: int) -> int:
        """A sample, if it can be read."""
        if self._numbers[self._places(epoch, [row])][0] < 0:
            raise ValueError("its latents could not be computed")
        return row

    def _sizes(self, places: tuple[np.ndarray, np.ndarray]) -> list[SizeInfo]:
        originals = self.samples.items.sizes[places[0]].tolist()
        return [
            SizeInfo((high, wide), (top, left), (tall, broad), (down, across))
            for (high, wide), (top, left, tall, broad, down, across) in zip(
                originals, self._cuts[places].tolist(), strict=True
            )
        ]

    def _missing(self, batch_size: int) -> list[list[Work]]:
        """All that the table lacks, each content once, in batches of one size."""
        unreadable = {file.key for file in self.bad}
        by_target: dict[tuple[int, int], list[Work]] = {}
        known: set[Key] = set()
        self._bad_works: list[Work] = []
        for item, variant in np.argwhere((self._numbers < 0) & self._exists).tolist():
            key = self._keys[item, variant].tobytes()
            if key in known:
                continue
            known.add(key)
            if self.samples.items.key(item) in unreadable:
                self._bad_works.append((item, variant))
                continue
            by_target.setdefault(self.samples.variant_target(item, variant), []).append((item, variant))
        return [todo[i : i + batch_size] for todo in by_target.values() for i in range(0, len(todo), batch_size)]

    def _encode(self, parts: Sequence[list[Work]], encode_image: ImageEncoder, workers: int) -> Iterator[int]:
        done = 0
        loader = DataLoader(_Cuts(self.samples, parts), batch_size=None, num_workers=workers)
        for part, (cuts, bad) in zip(parts, loader, strict=True):
            self.bad += bad
            whole = [(work, cut) for work, cut in zip(part, cuts, strict=True) if cut is not None]
            if whole:
                self._add([self._keys[work].tobytes() for work, _ in whole], [cut for _, cut in whole], encode_image)
            done += len(part)
            yield done

    def _add(self, keys: Sequence[Key], cuts: Sequence[Cut], encode_image: ImageEncoder) -> None:
        mean, std = _encoded(encode_image, [cut.image for cut in cuts])
        names = [name for name in self.encoded_inputs if name in cuts[0].inputs]
        latents = {name: _encoded(encode_image, [cut.inputs[name] for cut in cuts])[0] for name in names}
        for row, (key, cut) in enumerate(zip(keys, cuts, strict=True)):
            fields = {"mean": mean[row], "std": std[row]}
            fields |= {_ENCODED + name: latents[name][row] for name in names}
            if cut.loss_mask is not None:
                mask = torch.tensor(cut.loss_mask)[None, None]
                fields["loss_mask"] = F.adaptive_avg_pool2d(mask, (mean.shape[-2], mean.shape[-1]))[0]
            for name, picture in cut.inputs.items():
                if name not in latents:
                    fields[_INPUT + name] = torch.tensor(picture).permute(2, 0, 1).contiguous()
            self.table.add(key, fields)

    def _draw(self, numbers: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """A sample of the distribution of each row, by its seed alone."""
        first, stack = self.table.tensor("mean", numbers[0]), self.table.stack
        drawn = torch.empty(len(numbers), *first.shape, dtype=first.dtype)
        step = max(1, _AT_ONCE // first.numel())
        for i in range(0, len(numbers), step):
            part = numbers[i : i + step]
            noise = normals(seeds[i : i + step], first.numel(), first.dtype).view(len(part), *first.shape)
            if step == 1:
                mean, std = self.table.tensor("mean", part[0])[None], self.table.tensor("std", part[0])[None]
            else:
                mean, std = stack("mean", part), stack("std", part)
            torch.addcmul(mean, std, noise, out=drawn[i : i + step])
        return drawn

    def _loss_mask(self, numbers: Sequence[int]) -> Tensor | None:
        masked = ["loss_mask" in self.table.fields_of(number) for number in numbers]
        if all(masked):
            return self.table.stack("loss_mask", numbers)
        if not any(masked):
            return None
        full = torch.ones(1, *self.table.tensor("mean", numbers[0]).shape[-2:])
        pairs = zip(numbers, masked, strict=True)
        return torch.stack([self.table.tensor("loss_mask", number) if has else full for number, has in pairs])

    def _inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        inputs = {}
        for field in self.table.fields_of(numbers[0]):
            if field.startswith(_INPUT):
                inputs[field.removeprefix(_INPUT)] = self.table.stack(field, numbers).float().div_(255)
            elif field.startswith(_ENCODED):
                inputs[f"{field.removeprefix(_ENCODED)}_latents"] = self.table.stack(field, numbers)
        return inputs


class _Cuts(torch.utils.data.Dataset):
    """Batches of decoded images, for the processes that help to fill the cache."""

    def __init__(self, samples: Samples, parts: Sequence[Sequence[Work]]) -> None:
        self.samples = samples
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[list[Cut | None], list[BadFile]]:
        samples, bad, cuts = self.samples, [], []
        for item, variant in self.parts[number]:
            view = samples.variant_view(item, variant)
            cuts.append(attempt(lambda item=item, view=view: samples.cut(item, view), samples.items.key(item), bad))
        return cuts, bad


def _encoded(encode_image: ImageEncoder, pictures: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        mean, std = encode_image(torch.stack([image_tensor(picture) for picture in pictures]))
    return mean.cpu(), std.cpu()


def _settings(transforms: object, encoded_inputs: Sequence[str], *, durable: bool) -> str:
    """What identifies the user's transforms, and what else is kept."""
    if durable and " at 0x" in repr(transforms):
        raise ValueError(
            "transforms: a cache on disk cannot tell when they change; give them a __repr__ that shows their settings, "
            'or use cache_latents: "memory"'
        )
    return repr((transforms, list(encoded_inputs)))
