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


def _floats(mode: str, bits: int, group: int, *, free: bool = False) -> Format:
    """Return a format of floats of ``bits`` in U32 words, with a byte for each ``group`` of them.

    ``free``: the byte is a code, not a biased exponent (`Component.free`).
    """
    words, scales = Grain(1, 32 // bits), Grain(1, group, "cover")
    components = (Component("weight", ("U32",), (OUT, words)), Component("scales", ("U8",), (OUT, scales), free=free))
    return Format(f"mlx_{mode}", components, everywhere=True)


MLX_FLOATS: Final = {
    ("mxfp4", 4, 32): _floats("mxfp4", 4, 32),
    ("mxfp8", 8, 32): _floats("mxfp8", 8, 32),
    ("nvfp4", 4, 16): _floats("nvfp4", 4, 16, free=True),
}
"""Mode, bits and group → format: E2M1 or E4M3 with a biased exponent for each group, and E2M1 with a factor in E4M3."""
