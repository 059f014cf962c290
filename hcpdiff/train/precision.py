"""What a run computes with: device, processes, and the arithmetic."""

from __future__ import annotations

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState


def make_accelerator(precision: str) -> Accelerator:
    """Accelerate for a run in "fp32", "bf16" or "fp16".

    Raises:
        ValueError: this machine cannot do it.
    """
    if precision == "fp16" and str(PartialState().device) == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU; use bf16 or fp32")
    AcceleratorState._reset_state()  # of an earlier run in this process, whose precision it keeps otherwise
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision)
