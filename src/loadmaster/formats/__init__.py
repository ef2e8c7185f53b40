"""How values are encoded: every quantisation format is a table of components and grains.

These are data, not code. No other module knows a format's geometry. The arithmetic is where
tensors are used (`loadmaster.kernels` for dequantisation, `loadmaster.layers` for products).
"""

from loadmaster.formats.bitsandbytes import BITSANDBYTES_INT8, bitsandbytes
from loadmaster.formats.mlx import MLX_BITS, MLX_FLOATS, MLX_GROUPS, mlx
from loadmaster.formats.table import (
    FP4,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TENSOR_OTHERS,
    INT8_CHANNEL,
    MXFP4,
    MXFP4_LINEAR,
    MXFP4_LINEAR_INV,
    MXFP4_PACKED,
    NVFP4,
    NVFP4_MODELOPT,
    Component,
    Format,
    Grain,
    awq,
    fp8_block,
    gptq,
    int4_packed,
    mxfp8,
)

__all__ = [
    "BITSANDBYTES_INT8",
    "FP4",
    "FP8_CHANNEL",
    "FP8_TENSOR",
    "FP8_TENSOR_OTHERS",
    "INT8_CHANNEL",
    "MLX_BITS",
    "MLX_FLOATS",
    "MLX_GROUPS",
    "MXFP4",
    "MXFP4_LINEAR",
    "MXFP4_LINEAR_INV",
    "MXFP4_PACKED",
    "NVFP4",
    "NVFP4_MODELOPT",
    "Component",
    "Format",
    "Grain",
    "awq",
    "bitsandbytes",
    "fp8_block",
    "gptq",
    "int4_packed",
    "mlx",
    "mxfp8",
]
