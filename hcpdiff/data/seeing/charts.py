"""Pieces of the page about datasets: text, bars, shapes and histograms."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

import numpy as np

_BARS = 24  # of a histogram


def text(words: str, longest: int = 1000) -> str:
    """Somebody else's text, harmless in a page: markup and control characters are shown, not obeyed."""
    cut = words if len(words) <= longest else words[:longest] + " ..."
    plain = cut.encode("utf-8", "backslashreplace").decode("utf-8")  # file names need not be Unicode
    visible = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", plain)
    return f"<bdi>{html.escape(visible)}</bdi>"


def data_uri(jpeg: bytes) -> str:
    """A JPEG inside the page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def bar(share: float, kind: str = "") -> str:
    """A bar whose full length is for 1."""
    return f'<span class="bar {kind}" style="width:{max(0.0, min(1.0, share)) * 110:.0f}px"></span>'


def shape(size: tuple[int, int]) -> str:
    """A small outline of the aspect ratio of (height, width)."""
    factor = 22 / max(size)
    style = f"width:{max(3, round(size[1] * factor))}px;height:{max(3, round(size[0] * factor))}px"
    return f'<span class="shape" style="{style}"></span>'


def tag_bars(counts: Sequence[tuple[str, int]]) -> str:
    """Texts and how often each is, as bars."""
    most = max(count for _, count in counts)
    rows = (f"{text(tag, 60)}<span>{bar(count / most)}<small>{count:,}</small></span>" for tag, count in counts)
    return f'<div class="tags">{"".join(rows)}</div>'


def columns(counts: np.ndarray, limit: int) -> str:
    """A histogram of numbers; what is over the limit is red, and what is over twice the limit is in the last bar."""
    most = int(counts.max(initial=0))
    end = min(max(limit, most), 2 * limit) + 1
    wide = -(-end // _BARS)
    # A border between two bars lies right after the limit, so that no bar is partly over it.
    start = (limit + 1) % wide - wide if (limit + 1) % wide else 0
    edges = np.arange(start, end + wide, wide)
    heights, _ = np.histogram(np.minimum(counts, edges[-1] - 1), edges)
    tallest = max(1, int(heights.max(initial=0)))
    bars = "".join(
        f'<i class="{"over" if edge > limit else ""}" style="height:{height / tallest:.1%}" '
        f'title="from {max(0, edge)}: {height}"></i>'
        for edge, height in zip(edges[:-1].tolist(), heights.tolist(), strict=True)
    )
    last = f"{end - 1:,}" if most < end else f"{end - 1:,} and more"
    return f'<div class="columns">{bars}</div><div class="ends"><span>0</span><span>{last}</span></div>'
