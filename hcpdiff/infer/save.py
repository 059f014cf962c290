"""Pictures as files, and as sheets with their prompts."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hcpdiff.infer.generation import Picture

TILE = 192  # the least side of a picture in a sheet, in pixels: tiny models make tiny pictures
MARGIN = 8
LINE = 16


def save_picture(picture: Picture, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG with all that made it: a reader shows `parameters`, `hcpdiff` repeats it.

    Args:
        settings: of the request, as plain values.
    """
    text = PngInfo()
    shown = [picture.prompt.positive]
    if picture.prompt.negative:
        shown.append(f"Negative prompt: {picture.prompt.negative}")
    width, height = picture.image.size
    shown.append(
        f"Steps: {settings.get('steps')}, CFG scale: {settings.get('guidance')}, Seed: {picture.seed}, "
        f"Size: {width}x{height}"
    )
    text.add_itxt("parameters", "\n".join(shown))
    prompt = {"positive": picture.prompt.positive, "negative": picture.prompt.negative}
    text.add_itxt("hcpdiff", json.dumps({**settings, "prompt": prompt, "seed": picture.seed}, default=str))
    write_image(picture.image, path, pnginfo=text)


def write_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture that is there whole or not at all, and the folder if there is none; `options` are of Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        image.save(temporary, **options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(path: str | Path) -> dict[str, Any]:
    """What made a picture that `save_picture` wrote.

    Raises:
        ValueError: the file has no such text.
    """
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get("hcpdiff")
    if text is None:
        raise ValueError(f"{path}: this picture does not say how it was made")
    return json.loads(text)


def contact_sheet(
    rows: Sequence[Sequence[Picture]], labels: Sequence[str] | None = None, *, columns: int = 8
) -> Image.Image:
    """All pictures on one page, each with its prompt and seed under it.

    Args:
        labels: one per row, written above it.
        columns: a longer row goes on in the next line.
    """
    lines: list[tuple[str | None, list[Image.Image]]] = []
    for i, row in enumerate(rows):
        for start in range(0, len(row), columns):
            label = labels[i] if labels and start == 0 else None
            lines.append((label, [_tile(picture) for picture in row[start : start + columns]]))
    width = max(sum(tile.width + MARGIN for tile in tiles) for _, tiles in lines) + MARGIN
    heights = [max(t.height for t in tiles) + MARGIN + (0 if label is None else LINE) for label, tiles in lines]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    top = MARGIN
    for (label, tiles), height in zip(lines, heights, strict=True):
        if label is not None:
            ImageDraw.Draw(sheet).text((MARGIN, top), label, fill="black", font=_font(13))
        left = MARGIN
        for tile in tiles:
            sheet.paste(tile, (left, top + (0 if label is None else LINE)))
            left += tile.width + MARGIN
        top += height
    return sheet


def before_after(before: Image.Image, after: Image.Image, step: int) -> Image.Image:
    """Two sheets of the same prompts and seeds, one above the other."""
    title = 2 * LINE
    sheet = Image.new("RGB", (max(before.width, after.width), before.height + after.height + 2 * title), "white")
    draw = ImageDraw.Draw(sheet)
    for top, text, part in ((0, "before", before), (before.height + title, f"after {step} steps", after)):
        draw.text((MARGIN, top + MARGIN), text, fill="black", font=_font(18))
        sheet.paste(part, (0, top + title))
    return sheet


def _tile(picture: Picture) -> Image.Image:
    """One picture, enlarged by a whole factor if it is small, with its text under it."""
    image = picture.image
    factor = max(1, round(TILE / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    lines = textwrap.wrap(picture.prompt.positive or "(no prompt)", max(12, image.width // 7))
    lines.append(f"seed {picture.seed}")
    tile = Image.new("RGB", (image.width, image.height + LINE * len(lines) + 4), "white")
    tile.paste(image, (0, 0))
    draw = ImageDraw.Draw(tile)
    for i, line in enumerate(lines):
        grey = "gray" if i == len(lines) - 1 else "black"
        draw.text((2, image.height + 2 + LINE * i), line, fill=grey, font=_font(12))
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
