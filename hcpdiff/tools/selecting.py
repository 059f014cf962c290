"""How strongly a merge works on which layers: selectors as plugins have them, on the names of a model's files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hcpdiff.plugins.targets import close_names, matches
from hcpdiff.tools.settings import Layers


def strengths(layers: Sequence[str], chosen: Layers | None, strength: float, where: str) -> dict[str, float]:
    """{layer: strength} where it is not 0.

    Args:
        layers: those that there are, by their whole names: `denoiser.down_blocks.0.attentions.0.proj_in`.
        chosen: a list of selectors: only these layers, with `strength`; {selector: strength}: these differ, and where
            several match, the last one counts; None: all layers alike.
        where: the config key of `chosen`.

    Raises:
        ValueError: a selector matches nothing or is no regular expression.
    """
    if chosen is None:
        return dict.fromkeys(layers, strength)
    if isinstance(chosen, dict):
        result = dict.fromkeys(layers, strength)
        for selector, own in chosen.items():
            result |= dict.fromkeys(select(layers, selector, f"{where}.{selector}"), own)
        return {layer: value for layer, value in result.items() if value}
    found = {layer for i, selector in enumerate(chosen) for layer in select(layers, selector, f"{where}[{i}]")}
    return {layer: strength for layer in layers if layer in found}


def select(layers: Sequence[str], selector: str, where: str) -> list[str]:
    """The layers that a selector names, themselves or by a block that they are in; `''` is the whole model."""
    rest = selector.removeprefix("re:")
    if selector.startswith("re:"):
        try:
            re.compile(rest)
        except re.error as error:
            raise ValueError(f"{where}: {selector!r} is no regular expression: {error}") from None
    elif unknown := re.match(r"[A-Za-z_]+:", selector):
        raise ValueError(f"{where}: {selector!r}: {unknown[0]!r} does not fit here; this takes 're:'")
    known: dict[str, bool] = {}
    found = []
    for layer in layers:
        for path in _above(layer):
            if path not in known:
                known[path] = matches(path, selector)
        if any(known[path] for path in _above(layer)):
            found.append(layer)
    if not found:
        plain = re.sub(r"\\(.)", r"\1", rest) if selector != rest else rest
        raise ValueError(
            f"{where}: {selector!r} matches none of the {len(layers)} layers{close_names(plain, known)}. "
            "`hcpdiff inspect FILE --layers` lists them; each begins with its part, such as denoiser"
        )
    return found


def _above(layer: str) -> Iterator[str]:
    """The layer, and every block that it is in."""
    while layer:
        yield layer
        layer = layer.rpartition(".")[0]
    yield ""
