"""Texts with choices in them."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from hcpdiff.config.ranges import ExistingPath
from hcpdiff.data.captions.text import lines_of, read_text
from hcpdiff.data.prompts.choices import Drawn, Every, TooManyError, expand, references, weighted
from hcpdiff.data.prompts.templates import tidy


class Wildcards:
    """Makes the choices that a text holds: `a {red|blue} car` is "a red car" or "a blue car".

    Choices may lie within each other, an option may be empty, and `{3::red|blue}` is red three times as often as blue.
    `__colour__` is a line of the file `colour.txt`, and `__car/make__` of `car/make.txt`: blank lines and those that
    begin with # are left out, and each may begin with a weight and hold choices itself. Braces without a | between them
    stay as they are. In a template write {{red|blue}} and put this behind `TemplateFill`.

    Args:
        folder: of the files; None: `__name__` is no reference but text.
    """

    def __init__(self, folder: Annotated[str | Path, ExistingPath("folder")] | None = None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"folder: no folder at {folder}; give the folder of the wildcards' .txt files")
        self._files: dict[str, list[tuple[float, str]]] = {}

    def __call__(self, text: str, rng: random.Random) -> str:
        drawn = expand(text, Drawn(rng, self.lines), references=self.folder is not None)
        return drawn if drawn == text else tidy(drawn)

    def outcomes(self, text: str) -> list[str] | None:
        try:
            every = expand(text, Every(self.lines), references=self.folder is not None)
        except TooManyError:
            return None
        return sorted({result if result == text else tidy(result) for result in every})

    def lines(self, name: str) -> Sequence[tuple[float, str]]:
        """Weight and text of the lines of a file; all files that they refer to are read too.

        Raises:
            ValueError: it is empty, lies outside of the folder, or refers to itself.
            FileNotFoundError: it does not exist.
        """
        return self._read(name, ())

    def _read(self, name: str, above: tuple[str, ...]) -> list[tuple[float, str]]:
        if name in above:
            circle = " -> ".join(f"__{part}__" for part in (*above[above.index(name) :], name))
            raise ValueError(f"wildcards: {circle} goes round in a circle; take one of them out")
        if name not in self._files:
            path = self._path(name)
            texts = [line for line in lines_of(read_text(path, "wildcards")) if not line.startswith("#")]
            lines = [(weight, text) for weight, text in map(weighted, texts) if weight > 0]
            if not lines:
                raise ValueError(f"wildcards: {path} has no line to draw; write one option per line")
            for _, text in lines:
                for reference in references(text):
                    self._read(reference, (*above, name))
            self._files[name] = lines
        return self._files[name]

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        path = (self.folder / f"{name}.txt".replace("\\", "/")).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"wildcards: __{name}__ leads out of {self.folder}; name a file below it")
        if not path.is_file():
            found = sorted(file.relative_to(self.folder).as_posix()[:-4] for file in self.folder.rglob("*.txt"))
            near = difflib.get_close_matches(name, found)
            has = f"did you mean {' or '.join(near)}" if near else f"it has {', '.join(found[:20])}"
            raise FileNotFoundError(
                f"wildcards: there is no {name}.txt in {self.folder}; {has if found else 'it is empty'}"
            )
        return path
