"""Block dequantisation, the plain reference: one float32 factor for each block of rows × columns."""

from __future__ import annotations

import torch


def dequantise_blocks(
    values: torch.Tensor, scale: torch.Tensor, block: tuple[int, int], phase: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Return ``values * scale`` in float32, each factor spread over its block.

    ``values`` ``[..., rows, columns]`` in any float format, ``scale`` ``[..., ceil((phase + rows) / block), …]`` in
    float32. ``phase`` is how many rows and columns of the first block lie before the first element; the last blocks may
    be ragged. One float32 product an element, so any split of the rows gives the same bits.
    """
    rows, columns = values.shape[-2:]
    by_row = torch.arange(phase[0], phase[0] + rows, device=values.device) // block[0]
    by_column = torch.arange(phase[1], phase[1] + columns, device=values.device) // block[1]
    factors = scale.index_select(-2, by_row).index_select(-1, by_column)
    return values.to(torch.float32).mul_(factors)
