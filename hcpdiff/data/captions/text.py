"""Text files that people wrote with any editor: captions, templates, wildcards."""

from __future__ import annotations

import codecs
from pathlib import Path

_MARKS = {  # byte order mark: (encoding, its name)
    codecs.BOM_UTF8: ("utf-8", "UTF-8"),
    codecs.BOM_UTF16_LE: ("utf-16-le", "UTF-16"),
    codecs.BOM_UTF16_BE: ("utf-16-be", "UTF-16"),
}


def read_text(path: Path, key: str) -> str:
    r"""The text of a file, in UTF-8, or in UTF-16 with its mark; lines end with \n, whatever they ended with.

    Args:
        path: the file.
        key: what errors begin with.

    Raises:
        ValueError: it is neither; the message says at which byte.
    """
    content = path.read_bytes()
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    encoding, name = _MARKS.get(mark, ("utf-8", "UTF-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        raise ValueError(f"{key}: {path} is not {name} ({error.reason} at byte {place}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line for line in (line.strip() for line in text.split("\n")) if line]
