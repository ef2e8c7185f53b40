"""The kernel of `loadmaster.kernels.fp8_dequantise`. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dequantise(
    values, scale, out, rows, columns, values_pitch, scale_pitch, out_pitch, phase_row, phase_column,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write one tile of ``values * scale`` to ``out``; pitches are elements from row to row."""
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)[:, None]
    column = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    value = tl.load(values + row.to(tl.int64) * values_pitch + column, mask=inside, other=0.0).to(tl.float32)
    block = ((row + phase_row) // BLOCK_ROWS) * scale_pitch + (column + phase_column) // BLOCK_COLUMNS
    factor = tl.load(scale + block, mask=inside, other=0.0)
    product = (value * factor).to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * out_pitch + column, product, mask=inside)
