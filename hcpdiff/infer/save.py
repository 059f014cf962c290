"""Pictures as files, and as sheets with their prompts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hcpdiff.infer.generate import Picture

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
    picture.image.save(path, pnginfo=text)


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


def contact_sheet(rows: Sequence[Sequence[Picture]], labels: Sequence[str] | None = None) -> Image.Image:
    """All pictures on one page, each with its prompt and seed under it.

    Args:
        labels: one per row, written above it.
    """
    grid = [[_tile(picture) for picture in row] for row in rows]
    width = max(sum(t.width + MARGIN for t in row) for row in grid) + MARGIN
    above = LINE if labels else 0
    heights = [max(t.height for t in row) + MARGIN + above for row in grid]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    top = MARGIN
    for i, (row, height) in enumerate(zip(grid, heights, strict=True)):
        if labels:
            ImageDraw.Draw(sheet).text((MARGIN, top), labels[i], fill="black", font=_font(13))
        left = MARGIN
        for tile in row:
            sheet.paste(tile, (left, top + above))
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
    lines = textwrap.wrap(picture.prompt.positive or "(no prompt)", max(12, image.width // 7)) + [f"seed {picture.seed}"]
    tile = Image.new("RGB", (image.width, image.height + LINE * len(lines) + 4), "white")
    tile.paste(image, (0, 0))
    draw = ImageDraw.Draw(tile)
    for i, line in enumerate(lines):
        grey = "gray" if i == len(lines) - 1 else "black"
        draw.text((2, image.height + 2 + LINE * i), line, fill=grey, font=_font(12))
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
