"""Inference: requests, the one loop that makes pictures, and their files."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hcpdiff import lazy

if TYPE_CHECKING:
    from hcpdiff.infer.generation import Picture as Picture
    from hcpdiff.infer.generation import generate as generate
    from hcpdiff.infer.request import Adapter as Adapter
    from hcpdiff.infer.request import InferSettings as InferSettings
    from hcpdiff.infer.request import Request as Request
    from hcpdiff.infer.save import contact_sheet as contact_sheet
    from hcpdiff.infer.save import read_settings as read_settings

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "Adapter": "hcpdiff.infer.request:Adapter",
        "InferSettings": "hcpdiff.infer.request:InferSettings",
        "Picture": "hcpdiff.infer.generation:Picture",
        "Request": "hcpdiff.infer.request:Request",
        "contact_sheet": "hcpdiff.infer.save:contact_sheet",
        "generate": "hcpdiff.infer.generation:generate",
        "read_settings": "hcpdiff.infer.save:read_settings",
    },
)


class _Callable(ModuleType):
    """`hcpdiff.infer(...)` runs a config, although `hcpdiff.infer` is a package too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from hcpdiff.infer.run import infer

        return infer(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
