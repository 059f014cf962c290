"""The sections of a config and what receives each of them."""

from __future__ import annotations

import importlib
import typing
from functools import cache
from typing import Any

# A section is of a type, or of `module:name`; in `{}` several, with names of the user's choice, and in `[]` a list.
SECTIONS: dict[str, type | str] = {
    "name": str,
    "about": "hcpdiff.train.settings:About",
    "exp_dir": str,
    "seed": int,
    "model": "hcpdiff.models.family:ModelFamily",
    "data": "{hcpdiff.data.streams:AnyDataset}",
    "plugins": "{hcpdiff.plugins.spec:PluginSpec}",
    "words": "{hcpdiff.train.words:WordSpec}",
    "finetune": "[hcpdiff.train.settings:LayerGroup]",
    "train": "hcpdiff.train.settings:TrainSettings",
    "infer": "hcpdiff.infer.request:InferSettings",
    "merge": "hcpdiff.tools.settings:MergeSettings",
}


@cache
def annotation(section: str) -> Any:
    """The type that receives a section, imported when it is asked for."""
    place = SECTIONS[section]
    if not isinstance(place, str):
        return place
    module, _, name = place.strip("{}[]").partition(":")
    receiver = getattr(importlib.import_module(module), name)
    if place.startswith("{"):
        return dict[str, receiver]
    return list[receiver] if place.startswith("[") else receiver


def optional(section: str) -> bool:
    """Whether null leaves a section out: one of objects, not a plain value such as `seed`."""
    return isinstance(SECTIONS[section], str)


def item(section: str) -> Any:
    """The type of one entry of a section that has several."""
    return typing.get_args(annotation(section))[-1]
