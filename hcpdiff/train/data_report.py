"""`hcpdiff data`: what a run will see, without reading a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hcpdiff.config import build, load, require
from hcpdiff.config.selectors import latent_spec
from hcpdiff.data.preview import contact_sheet, summarize


def report(cfg: str | Path, overrides: Sequence[str] = (), *, out: Path, trust: Sequence[str] = ()) -> Iterator[str]:
    """Lines about every dataset of a config; one contact sheet per dataset is written next to `out`.

    Raises:
        ConfigError: listing every mistake in the config.
        ValueError: a dataset has no usable image, or too many that are not.
    """
    config = load(cfg, overrides, trust)
    require(config, "model", "data")
    multiple_of = latent_spec(config).multiple_of
    datasets = build(config, "data")
    for name, dataset in datasets.items():
        dataset.prepare(config.get("seed", 0), name, multiple_of, lambda line: None)
        yield str(summarize(dataset))
        sheet = out if len(datasets) == 1 else out.with_name(f"{out.stem}-{name}{out.suffix}")
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(dataset).save(sheet)
        yield f"{name}: contact sheet in {sheet}"
