"""What is wrong with a dataset, or may be, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hcpdiff.data.scan import BadFile
from hcpdiff.data.seeing.geometry import Geometry
from hcpdiff.data.seeing.looks import Look
from hcpdiff.data.seeing.similar import alike
from hcpdiff.data.seeing.words import Words

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

BLURRED = 0.03  # of `sharpness`
EXTREME = 3.0  # aspect ratio, of the longer to the shorter side
MUCH_CUT = 1 / 3  # share of the area


@dataclass(frozen=True)
class Entry:
    """One case of a problem: usually one image, or the images that look alike."""

    items: tuple[int, ...]
    text: str = ""
    key: str = ""  # of an image that has no number, as it is left out


@dataclass(frozen=True)
class Problem:
    """All cases of one kind, the worst first."""

    kind: str
    title: str
    advice: str
    grade: Literal["bad", "doubtful"]  # bad: it harms; doubtful: look at it
    entries: list[Entry]

    @property
    def images(self) -> int:
        """How many images it concerns."""
        return sum(max(1, len(entry.items)) for entry in self.entries)


def find_problems(dataset: Dataset, words: Words, looks: Sequence[Look], broken: Sequence[BadFile]) -> list[Problem]:
    """What is wrong, the worst kind first; kinds of which there is no case are left out.

    Args:
        looks: at the images that were decoded.
        broken: those that could not be decoded.
    """
    geometry = Geometry(dataset)
    found: list[Problem] = [
        _broken([*dataset.bad, *broken, *words.bad]),
        _missing(words),
        _duplicates(dataset, looks),
        _cut_prompts(words),
        _tiny(dataset, geometry),
        _extreme(dataset, geometry),
        _blurred(looks),
    ]
    return [problem for problem in found if problem.entries]


def _broken(files: Sequence[BadFile]) -> Problem:
    unique = {file.key: file for file in files}
    return Problem(
        "broken",
        "Unreadable",
        "They are left out. Save them again with another program, or delete them.",
        "bad",
        [Entry((), file.reason, file.key) for file in unique.values()],
    )


def _missing(words: Words) -> Problem:
    return Problem(
        "missing",
        "No caption",
        "They are trained with an empty prompt, or what a template makes of one. Write captions, or leave them out.",
        "bad",
        [Entry((item,)) for item in words.missing],
    )


def _duplicates(dataset: Dataset, looks: Sequence[Look]) -> Problem:
    entries = []
    if looks:
        hashes = np.array([look.hash for look in looks], dtype=np.uint64)
        for group in alike(hashes, np.stack([look.small for look in looks])):
            items = tuple(looks[n].item for n in group.tolist())
            captions = {tuple(dataset.samples.captions_or_none(item, []) or ()) for item in items}
            text = "with different captions" if len(captions) > 1 else "with the same caption"
            entries.append(Entry(items, f"{len(items)} images {text}"))
    return Problem(
        "duplicates",
        "Look alike",
        "What is there twice is learned twice. Keep the best of each group.",
        "bad",
        sorted(entries, key=lambda entry: -len(entry.items)),
    )


def _cut_prompts(words: Words) -> Problem:
    worst: dict[tuple[int, str], str] = {}
    for encoder, tokens in words.tokens.items():
        for item, prompt, count in tokens.cut:
            told = f"{count} tokens, of which {encoder} sees {tokens.limit}"
            worst[item, prompt] = f"{worst[item, prompt]}; {told}" if (item, prompt) in worst else told
    # A prompt that every encoder cuts is lost in part; one that a longer encoder reads whole is not.
    lost = [key for key in worst if worst[key].count(";") + 1 == len(words.tokens)]
    return Problem(
        "cut",
        "Prompts that no text encoder reads to the end",
        "Put what matters first, or write shorter captions.",
        "doubtful",
        [Entry((item,), f"{worst[item, prompt]}: {prompt}") for item, prompt in lost],
    )


def _tiny(dataset: Dataset, geometry: Geometry) -> Problem:
    def describe(item: int, column: int) -> str:
        height, width = dataset.samples.items.sizes[item].tolist()
        target = geometry.targets[item, column]
        times = geometry.enlargement[item, column]
        return (
            f"{height} x {width} enlarged {times:.{1 if times >= 2 else 2}f} times to {target[0]:.0f} x {target[1]:.0f}"
        )

    return Problem(
        "tiny",
        "Smaller than what they are cut to",
        "Enlarged images teach a model to draw blurred ones. Find larger ones, leave them out, or train at a smaller "
        "size.",
        "doubtful",
        list(_worst(geometry.enlargement, geometry.enlargement > 1, describe)),
    )


def _extreme(dataset: Dataset, geometry: Geometry) -> Problem:
    sizes = dataset.samples.items.sizes.astype(np.float64)
    ratio = sizes.max(axis=1) / np.maximum(sizes.min(axis=1), 1)
    chosen = (geometry.crop_loss > MUCH_CUT) | ((ratio > EXTREME)[:, None] & (geometry.crop_loss > 0.02))

    def describe(item: int, column: int) -> str:
        height, width = dataset.samples.items.sizes[item].tolist()
        return f"{height} x {width}: {geometry.crop_loss[item, column]:.0%} is cut away"

    return Problem(
        "extreme",
        "Very long, or much is cut away",
        "Crop them yourself to what matters, or add sizes to the bucket.",
        "doubtful",
        list(_worst(geometry.crop_loss, chosen, describe)),
    )


def _blurred(looks: Sequence[Look]) -> Problem:
    blurred = [(look.sharpness, look.item) for look in looks if look.sharpness is not None and look.sharpness < BLURRED]
    return Problem(
        "blurred",
        "Blurred at the size that they are trained at",
        f"Of a sharp photograph the measure is 0.1 to 1.5, of a blurred or enlarged one below {BLURRED}. Soft drawings "
        "and skies may be right as they are.",
        "doubtful",
        [Entry((item,), f"sharpness {value:.3f}") for value, item in sorted(blurred)],
    )


def _worst(
    measure: np.ndarray, chosen: np.ndarray, describe: Callable[[int, int], str], most: int = 1000
) -> Iterator[Entry]:
    """An entry for each chosen image, by its worst size, the worst first; only the first are described."""
    values = np.where(chosen, measure, -np.inf)
    columns = values.argmax(axis=1)
    best = values[np.arange(len(values)), columns]
    for place, item in enumerate(np.argsort(-best, kind="stable")[: int(np.isfinite(best).sum())].tolist()):
        yield Entry((item,), describe(item, int(columns[item])) if place < most else "")
