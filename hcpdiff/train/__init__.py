"""Training: the loop, its objective, and what happens around it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from hcpdiff import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "EMA": "hcpdiff.train.ema:EMA",
        "Callback": "hcpdiff.train.callbacks:Callback",
        "EmaSettings": "hcpdiff.train.settings:EmaSettings",
        "JsonLines": "hcpdiff.train.loggers:JsonLines",
        "LayerGroup": "hcpdiff.train.settings:LayerGroup",
        "Objective": "hcpdiff.train.objective:Objective",
        "PreviewSettings": "hcpdiff.train.settings:PreviewSettings",
        "TensorBoard": "hcpdiff.train.loggers:TensorBoard",
        "TrainSettings": "hcpdiff.train.settings:TrainSettings",
        "Trainer": "hcpdiff.train.trainer:Trainer",
        "WandB": "hcpdiff.train.loggers:WandB",
    },
)


class _Callable(ModuleType):
    """`hcpdiff.train(...)` runs a config, although `hcpdiff.train` is a package too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from hcpdiff.train.run import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
