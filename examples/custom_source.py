"""A data source of your own: images and captions from a CSV table.

    python examples/custom_source.py

In a config, name the class, and pass `--trust custom_source`:

    data: {main: {source: {_target_: custom_source.CsvSource, path: cats.csv}, ...}}
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

from PIL import Image

from hcpdiff.data import Dataset, FixedBucket, Record, Streams


class CsvSource:
    """Rows of `file,caption`; files are named from the table's folder."""

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path).parent
        with open(path, encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index]["file"]

    def size(self, index: int) -> tuple[int, int]:
        with Image.open(self.folder / self.key(index)) as image:  # reads the header only
            return image.height, image.width

    def captions(self, index: int) -> list[str]:
        return [self.rows[index]["caption"]]

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(Image.open(self.folder / self.key(index)).convert("RGB"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = ["file,caption"]
        for color in ("red", "green", "blue"):
            Image.new("RGB", (80, 60), color).save(f"{folder}/{color}.png")
            lines.append(f"{color}.png,a {color} sheet of paper")
        Path(folder, "table.csv").write_text("\n".join(lines), encoding="utf-8")
        source = CsvSource(f"{folder}/table.csv")
        dataset = Dataset(source, FixedBucket(64), batch_size=2, template=["photo of {caption}"])
        dataset.prepare(seed=0, name="main", multiple_of=16, log=print)
        batch = next(Streams({"main": dataset}).batches())["main"]
        print(tuple(batch.images.shape), [prompt.positive for prompt in batch.prompts])
