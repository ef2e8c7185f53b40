"""Block dequantisation on a GPU, one pass: from stored values and factors straight into a part of a parameter.

Beside `dequantise.dequantise_blocks`, which is its reference: the same float32 product, rounded once to the parameter's
dtype, so the same bits. Blocks may be ragged, and the first may be cut.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

TILE = (32, 128)
"""Rows and columns of one program."""


@cache
def is_available() -> bool:
    """Whether Triton, which compiles the kernel, is installed; without it torch computes the same."""
    return importlib.util.find_spec("triton") is not None


def dequantise_blocks_into(
    out: Tensor, values: Tensor, scale: Tensor, block: tuple[int, int], phase: tuple[int, int] = (0, 0)
) -> None:
    """Write ``values * scale``, rounded to the dtype of ``out``.

    ``out`` and ``values`` ``[rows, columns]`` with columns side by side, ``scale`` ``[ceil((phase + rows) / block), …]``;
    all on one GPU. ``phase`` is how many rows and columns of the first block lie before the first element.
    """
    from loadmaster.kernels.fp8_dequantise_triton import dequantise

    rows, columns = values.shape
    factors = scale.to(torch.float32).contiguous()
    grid = (-(-rows // TILE[0]), -(-columns // TILE[1]))
    dequantise[grid](
        values, factors, out, rows, columns, values.stride(0), factors.stride(0), out.stride(0), *phase, *block, *TILE
    )
