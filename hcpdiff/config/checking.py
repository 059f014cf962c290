"""All mistakes of a config at once, without running anything."""

from __future__ import annotations

from collections.abc import Sequence

from hcpdiff.config import sections
from hcpdiff.config.loading import Config
from hcpdiff.config.mistakes import ConfigError, Mistake, hint
from hcpdiff.config.reading import Reader
from hcpdiff.config.rehearsal import rehearse
from hcpdiff.config.selectors import check_merge, check_selectors, check_sizes


def check(
    config: Config, trust: Sequence[str] = (), *, needs: Sequence[str] = (), selectors: bool = False
) -> list[Mistake]:
    """Every mistake of the config, in its order; empty if it can be built.

    What reading every image would show is not among them: `hcpdiff data` looks at that, and so does a run.

    Args:
        trust: packages that `_target_` may name besides the ones hcpdiff trusts.
        needs: sections that must be there, e.g. ("model", "data", "train").
        selectors: also whether every layer selector matches a layer of the model, built without weights, and whether
            the files of a merge go together.
    """
    reader = Reader(config.origin, (*config.trust, *trust))
    reader.mistakes += config.mistakes
    for section, node in config.items():
        if section in sections.SECTIONS:
            if node is not None or not sections.optional(section):
                reader.read(node, sections.annotation(section), (section,))
        else:
            near = hint(section, sections.SECTIONS, f"; the sections are {', '.join(sections.SECTIONS)}")
            reader.wrong((section,), f"there is no such section{near}")
    for section in needs:
        if config.get(section) is None:
            reader.wrong((section,), "is missing; add this section")
    made = {} if reader.mistakes else rehearse(config, reader)
    if selectors and not reader.mistakes:
        check_selectors(config, reader)
        check_sizes(config, made, reader)
        check_merge(made, reader)
    return list(dict.fromkeys(reader.mistakes))


def require(config: Config, *needs: str) -> None:
    """Raise a ConfigError that lists every mistake, if there is one; `needs` are sections that must be there."""
    mistakes = check(config, needs=needs)
    if mistakes:
        raise ConfigError(mistakes)
