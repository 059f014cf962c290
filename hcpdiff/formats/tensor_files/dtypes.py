"""Dtypes by the names that safetensors files, configs and people have for them."""

from __future__ import annotations

import torch

DTYPES = {  # by the names in safetensors files
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """A floating dtype by its torch name or the usual short one: float32/fp32, bfloat16/bf16, float16/fp16."""
    short = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = short.get(name) or getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{name!r} is no floating dtype; use float32, bfloat16 or float16")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Its name in torch, such as bfloat16."""
    return str(dtype).removeprefix("torch.")
