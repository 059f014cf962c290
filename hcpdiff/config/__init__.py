"""Configs: composed from YAML files, checked against the signatures of what they name, and built into objects.

    config = load("cfgs/lora.yaml", ["train.steps=10"])
    if mistakes := check(config):
        raise ConfigError(mistakes)
    family = build(config, "model")

What a YAML file may say, besides Hydra's defaults lists:

- `_target_: package.Class` (or a function, or a classmethod) and its arguments by name; `_args_` is a list of the first
  ones without names. Where the receiver wants something to call, what the program gives when it runs is left out.
- `true` and `false` are the only booleans, so `on:` is a key like others; `1e-4` is a number.
- `${train.steps}` copies a value or a whole group (a copied `_target_` is an object of its own), `${now:}` is the time,
  `${pixels:1024,1024}` a number of pixels, `???` a value that must be given.
- `_replace_: true` in a group drops what the files before it say there; else groups are merged, and lists replaced. An
  override says it too: `model._replace_=true`.
- `# @package _global_` as the first line of a file in a group (such as `base/`) puts its keys at the top, not under the
  name of its folder. Files at the top and files of `model/`, `data/` and `plugins/` do not need it.
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
