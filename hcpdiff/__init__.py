"""hcpdiff: fine-tune diffusion models from a short YAML file.

    import hcpdiff
    hcpdiff.train("cfgs/lora.yaml", ["train.steps=200"])
    pictures = hcpdiff.infer("cfgs/infer.yaml")
    config = hcpdiff.load_config("cfgs/lora.yaml")

Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcpdiff import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hcpdiff.config.loading import load as load_config  # noqa: F401
    from hcpdiff.infer.run import infer as infer
    from hcpdiff.train.run import train as train

# The packages `hcpdiff.train` and `hcpdiff.infer` are functions as well (see their __init__).
__getattr__, __dir__, __all__ = lazy.exports(
    __name__, {"load_config": "hcpdiff.config:load", "train": "hcpdiff.train:", "infer": "hcpdiff.infer:"}
)
