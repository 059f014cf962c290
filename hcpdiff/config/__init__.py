"""Configs: composed from YAML files, checked against the signatures of what they name, and built into objects.

config = load("cfgs/lora.yaml", ["train.steps=10"])
mistakes = check(config)
family = build(config, "model")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.config.building import build as build
    from hcpdiff.config.checking import check as check
    from hcpdiff.config.checking import require as require
    from hcpdiff.config.loading import Config as Config
    from hcpdiff.config.loading import leaves as leaves
    from hcpdiff.config.loading import load as load
    from hcpdiff.config.loading import to_yaml as to_yaml
    from hcpdiff.config.mistakes import ConfigError as ConfigError
    from hcpdiff.config.mistakes import Mistake as Mistake
    from hcpdiff.config.mistakes import Origin as Origin

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "Config": "hcpdiff.config.loading:Config",
        "ConfigError": "hcpdiff.config.mistakes:ConfigError",
        "Mistake": "hcpdiff.config.mistakes:Mistake",
        "Origin": "hcpdiff.config.mistakes:Origin",
        "build": "hcpdiff.config.building:build",
        "check": "hcpdiff.config.checking:check",
        "leaves": "hcpdiff.config.loading:leaves",
        "require": "hcpdiff.config.checking:require",
        "load": "hcpdiff.config.loading:load",
        "to_yaml": "hcpdiff.config.loading:to_yaml",
    },
)
