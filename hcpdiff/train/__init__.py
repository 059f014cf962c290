"""Training: the loop, its objective, and what happens around it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.train.callbacks import Callback as Callback
    from hcpdiff.train.ema import EMA as EMA
    from hcpdiff.train.finite import NonFiniteLossError as NonFiniteLossError
    from hcpdiff.train.loggers import JsonLines as JsonLines
    from hcpdiff.train.loggers import TensorBoard as TensorBoard
    from hcpdiff.train.loggers import WandB as WandB
    from hcpdiff.train.objective import Objective as Objective
    from hcpdiff.train.settings import EmaSettings as EmaSettings
    from hcpdiff.train.settings import ExportSettings as ExportSettings
    from hcpdiff.train.settings import LayerGroup as LayerGroup
    from hcpdiff.train.settings import PreviewSettings as PreviewSettings
    from hcpdiff.train.settings import TrainSettings as TrainSettings
    from hcpdiff.train.trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "EMA": "hcpdiff.train.ema:EMA",
        "Callback": "hcpdiff.train.callbacks:Callback",
        "EmaSettings": "hcpdiff.train.settings:EmaSettings",
        "ExportSettings": "hcpdiff.train.settings:ExportSettings",
        "JsonLines": "hcpdiff.train.loggers:JsonLines",
        "LayerGroup": "hcpdiff.train.settings:LayerGroup",
        "NonFiniteLossError": "hcpdiff.train.finite:NonFiniteLossError",
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
