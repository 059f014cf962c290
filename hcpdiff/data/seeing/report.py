"""All that `hcpdiff data` tells of one dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from hcpdiff.data.scan import BadFile
from hcpdiff.data.seeing.draws import Draw, draws
from hcpdiff.data.seeing.looks import look_over, thumbnails
from hcpdiff.data.seeing.problems import Problem, find_problems
from hcpdiff.data.seeing.sheet import contact_sheet
from hcpdiff.data.seeing.summary import Summary, spread, summarize
from hcpdiff.data.seeing.words import CountTokens, Words, read_words

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

CASES = 12  # of each problem that are shown as pictures
GROUP = 6  # pictures of a case that are shown


@dataclass(frozen=True)
class Report:
    """One dataset, looked at."""

    dataset: Dataset
    summary: Summary
    words: Words
    problems: list[Problem]
    decoded: int  # images that were decoded, broken ones included
    shown: dict[int, list[Draw]]  # the images of the contact sheet, and how they are drawn
    thumbnails: dict[int, bytes]  # JPEGs of all that is shown
    broken: list[BadFile]  # found by decoding

    def sheet(self) -> Image.Image:
        """The contact sheet as one picture."""
        return contact_sheet(self.dataset, self.shown, self.thumbnails)

    def lines(self) -> list[str]:
        """The summary, and a line for each kind of problem."""
        found = [f"  {problem.title.lower()}: {_images(problem.images)}" for problem in self.problems]
        return [*str(self.summary).splitlines(), *found]


def look_at(
    dataset: Dataset,
    *,
    images: int = 500,
    shown: int = 24,
    times: int = 3,
    count_tokens: CountTokens | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look over a prepared dataset.

    Args:
        images: how many to decode at most, evenly spread; duplicates and blur are found among these only.
        shown: how many of them the contact sheet has.
        times: how many draws of each it shows.
        count_tokens: of the model; None: prompts are not measured.
        progress: told (done, total) as images are decoded.
    """
    if images < 1:
        raise ValueError(f"--images: {images} is too few; use 1 or more")
    chosen = spread(len(dataset.samples.items), images).tolist()
    looks, broken = look_over(dataset, chosen, progress)
    words = read_words(dataset, count_tokens)
    problems = find_problems(dataset, words, looks, broken)
    pictures = {item: draws(dataset, item, times) for item in (chosen[n] for n in spread(len(chosen), shown).tolist())}
    return Report(
        dataset=dataset,
        summary=summarize(dataset),
        words=words,
        problems=problems,
        decoded=len(chosen),
        shown=pictures,
        thumbnails=thumbnails(dataset, looks, [*pictures, *_pictured(problems)]),
        broken=broken,
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _pictured(problems: Sequence[Problem]) -> list[int]:
    return [item for problem in problems for entry in problem.entries[:CASES] for item in entry.items[:GROUP]]
