"""`hcpdiff data`: what a run will see, without reading a model's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from hcpdiff.config import build, load, require
from hcpdiff.config.selectors import latent_spec, token_counter
from hcpdiff.data.dataset import Dataset
from hcpdiff.data.manifest import file_name, written
from hcpdiff.data.seeing import Report, look_at, page
from hcpdiff.infer.save import write_image
from hcpdiff.train import progress

log = logging.getLogger("hcpdiff.train")


def report(
    cfg: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: Path = Path("data.html"),
    images: int = 500,
    trust: Sequence[str] = (),
) -> Iterator[str]:
    """Lines about every dataset of a config; a page about all of them, and a contact sheet of each, are written.

    Args:
        out: where the page goes; its suffix becomes .html. Contact sheets lie beside it as .png.
        images: how many of each dataset to decode at most, evenly spread.

    Raises:
        ConfigError: listing every mistake in the config.
        ValueError: a dataset has no usable image, or too many that are not.
    """
    config = load(cfg, overrides, trust)
    require(config, "model", "data")
    spec, count_tokens = latent_spec(config), token_counter(config)
    datasets, reports = build(config, "data"), list[Report]()
    for name, dataset in datasets.items():
        lines: list[str] = []
        with progress.bar(f"looking over {name}", "image") as show:
            seed = config.get("seed", 0)
            dataset.prepare(seed, name, spec.multiple_of, lines.append, max_side=spec.max_side, progress=show)
        if not isinstance(dataset, Dataset):  # of what is streamed, the start alone is known
            yield from lines
            continue
        with progress.bar(f"images of {name}", "image") as show:
            found = look_at(dataset, images=images, count_tokens=count_tokens, progress=show)
        yield from found.lines()
        sheet = out.with_name(f"{out.stem}.png" if len(datasets) == 1 else f"{out.stem}-{file_name(name)}.png")
        write_image(found.sheet(), sheet)
        yield f"{name}: contact sheet in {sheet}"
        reports.append(found)
    whole = out.with_suffix(".html")
    with written(whole) as file:
        file.write(page(f"Data of {cfg}", reports))
    yield f"page in {whole}"
