"""MLX's formats: groups of codes along the in dim, each with a factor and an offset. Apple's array framework writes them.

Source: ``mx.quantize`` in https://ml-explore.github.io/mlx, and ``save_config`` and ``quantize_model`` in ``mlx_lm/utils.py``.
Embeddings and routers are quantised like linear layers. What is quantised the names say: a module with ``scales``.
"""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import Final

from loadmaster.formats.table import OUT, SCALE, Component, Format, Grain

MLX_BITS: Final = (2, 3, 4, 5, 6, 8)
MLX_GROUPS: Final = (32, 64, 128)


@cache
def mlx(bits: int, group: int) -> Format:
    """Return MLX's affine format: codes of ``bits`` in U32 words, lowest bits first, and ``value = code * scale + bias``.

    Codes run on from word to word where 32 is no multiple of ``bits``: 32 of 3 bits take three words, which are never split.
    Factors may be negative.

    >>> [c.shape((8, 128)) for c in mlx(3, 64).components]
    [(8, 12), (8, 2), (8, 2)]
    """
    common = gcd(32, bits)
    words = Grain(1, 32 // common)
    values = (
        Component("weight", ("U32",), (OUT, words))
        if bits == common
        else Component("weight", ("U32",), (OUT, words, Grain(-1, bits // common, "inner")), joined="last")
    )
    by_group = (OUT, Grain(1, group, "cover"))
    factors = (Component(suffix, SCALE, by_group, free=True) for suffix in ("scales", "biases"))
    return Format(f"mlx{bits}", (values, *factors), zero_filled=True, everywhere=True)


MLX_MXFP4: Final = Format(
    "mlx_mxfp4",
    (
        Component("weight", ("U32",), (OUT, Grain(1, 8))),
        Component("scales", ("U8",), (OUT, Grain(1, 32, "cover"))),
    ),
    everywhere=True,
)
"""MXFP4 as MLX stores it (``mode: mxfp4``): eight E2M1 values in each U32, and a biased exponent for each 32 values."""
