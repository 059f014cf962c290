"""What configs may name of hcpdiff itself: what it exports for them, and nothing that runs, reads or writes."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

# The classes that these packages export ...
PACKAGES = ("hcpdiff.data", "hcpdiff.models", "hcpdiff.plugins", "hcpdiff.diffusion", "hcpdiff.train", "hcpdiff.infer")
# ... but for those that run something or belong to a run; and the functions and classes that these modules define,
# or, if they are packages, export.
NOT_OFFERED = {"Objective", "PluginGroup", "Streams", "Trainer"}
MODULES = (
    "hcpdiff.diffusion.guidance",
    "hcpdiff.diffusion.losses",
    "hcpdiff.diffusion.noise",
    "hcpdiff.diffusion.samplers",
    "hcpdiff.diffusion.timesteps",
    "hcpdiff.diffusion.weights",
    "hcpdiff.train.callbacks",
    "hcpdiff.train.loggers",
    "hcpdiff.train.optimizers",
    "hcpdiff.train.schedules",
)


def offered(found: Any) -> bool:
    """Whether a class or function of hcpdiff is one that it offers to configs.

    A new class needs no entry here: that its package exports it is enough. Functions are offered by `MODULES` alone.
    """
    name = found.__name__
    if name in NOT_OFFERED:
        return False
    places = (*PACKAGES, *MODULES) if inspect.isclass(found) else MODULES
    near = [place for place in places if f"{found.__module__}.".startswith(f"{place}.")]
    return any(_has(importlib.import_module(place), name, found) for place in near)


def _has(module: ModuleType, name: str, found: Any) -> bool:
    """Whether a module exports this object, or defines it if it says nothing of exports."""
    exports = getattr(module, "__all__", None)
    if exports is None:
        return found.__module__ == module.__name__ and vars(module).get(name) is found
    return name in exports and getattr(module, name) is found
