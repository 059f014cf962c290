"""A contact sheet: some images with their crops in frames, and their prompts."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from hcpdiff.data.seeing.draws import Draw, frames

if TYPE_CHECKING:
    from hcpdiff.data.dataset import Dataset

FRAMES = (
    (255, 80, 0),
    (0, 140, 255),
    (30, 170, 60),
    (200, 60, 200),
    (150, 110, 0),
)  # of the first draw, the second ...
_INK, _GREY = (20, 20, 20), (110, 110, 110)


def contact_sheet(
    dataset: Dataset,
    shown: Mapping[int, Sequence[Draw]],
    thumbnails: Mapping[int, bytes],
    *,
    columns: int = 6,
    cell: int = 220,
) -> Image.Image:
    """Each image whole, what no crop keeps darkened, each crop in a frame, and the prompts in the same colours.

    Args:
        shown: the draws of each image.
        thumbnails: JPEGs; an image without one could not be read.
        cell: pixels of a column.
    """
    cells = [_cell(dataset, item, list(drawn), thumbnails.get(item), cell) for item, drawn in shown.items()]
    columns = max(1, min(columns, len(cells)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (columns * cell, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * cell, top))
        top += height
    return sheet


def _cell(dataset: Dataset, item: int, shown: list[Draw], thumbnail: bytes | None, width: int) -> Image.Image:
    edge = width - 12
    key = dataset.samples.items.key(item)
    if thumbnail is None:
        picture = Image.new("RGB", (edge, edge // 2), (230, 200, 200))
        lines = [(key, _INK), ("no picture, or it cannot be read", _GREY), *_told(shown)]
    else:
        picture = _framed(Image.open(io.BytesIO(thumbnail)), shown, edge)
        lines = [(key, _INK), *_told(shown)]
    wrapped = [(line, ink) for text, ink in lines for line in textwrap.wrap(_plain(text), edge // 6)[:4] or [""]]
    canvas = Image.new("RGB", (width, picture.height + 16 + 13 * len(wrapped)), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 6))
    pen = ImageDraw.Draw(canvas)
    for number, (line, ink) in enumerate(wrapped):
        pen.text((6, picture.height + 8 + 13 * number), line, fill=ink, font=_font())
    return canvas


def _told(shown: Sequence[Draw]) -> list[tuple[str, tuple[int, int, int]]]:
    """The sizes, and each different prompt in the colour of its first draw."""
    sizes = [f"{draw.view.size.target[0]} x {draw.view.size.target[1]}" for draw in shown]
    told: dict[str, tuple[int, int, int]] = {", ".join(dict.fromkeys(sizes)): _GREY}
    for number, draw in enumerate(shown):
        prompt = "caption cannot be read" if draw.prompt is None else draw.prompt.positive or "(empty prompt)"
        negative = f" | negative: {draw.prompt.negative}" if draw.prompt and draw.prompt.negative else ""
        told.setdefault(("mirrored: " if draw.view.flip else "") + prompt + negative, FRAMES[number % len(FRAMES)])
    return list(told.items())


def _framed(image: Image.Image, shown: Sequence[Draw], edge: int) -> Image.Image:
    shrink = edge / max(image.size)
    small = image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))))
    result = Image.blend(small, Image.new("RGB", small.size, (0, 0, 0)), 0.6)
    boxes = []
    for (top, left, tall, wide), numbers in frames(shown):
        box = [left * small.width, top * small.height, (left + wide) * small.width, (top + tall) * small.height]
        boxes.append(([round(side) for side in box], FRAMES[numbers[0] % len(FRAMES)]))
    for (left, top, right, bottom), _ in boxes:
        result.paste(small.crop((left, top, right, bottom)), (left, top))
    for (left, top, right, bottom), colour in reversed(boxes):
        ImageDraw.Draw(result).rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2
        )
    return result


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=11)
