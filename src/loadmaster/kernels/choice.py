"""Whether a kernel or its plain reference computes: decided by the device, the dtype, and whether Triton is installed."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

COMPILED = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes that the kernels compute in."""


@cache
def has_triton() -> bool:
    """Return whether Triton, which compiles the kernels, is installed. It comes with torch for CUDA."""
    return importlib.util.find_spec("triton") is not None


def uses_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether tensors of ``dtype`` on ``device`` are computed by Triton's kernels; if not, by plain torch."""
    return device.type == "cuda" and dtype in COMPILED and has_triton()
