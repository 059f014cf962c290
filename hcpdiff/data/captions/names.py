"""Names of images as tables and folders write them."""

from __future__ import annotations

import unicodedata


def stem(name: str) -> str:
    """A relative path without its last suffix, in one form of unicode, so that equal-looking names are equal."""
    head, slash, tail = normal(name).rpartition("/")
    return head + slash + (tail.rpartition(".")[0] or tail)


def normal(name: str) -> str:
    """A relative path with forward slashes and composed characters (NFC)."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def forms(name: str) -> list[str]:
    """The ways a table may name an image, the most precise first: with and without subfolder and suffix."""
    whole = [normal(name), stem(name)]
    return whole + [form.rpartition("/")[2] for form in whole]
