"""Products with weights as they are stored: plain, or FP8 with a factor for each block; of one weight, or of chosen experts.

A weight that is dequantised for a product with few rows takes ten times the bytes of reading it once. The kernel converts each
tile on its way to the tensor cores, and applies the factor of its block to the tile's sums, in float32.

Experts: the choices of all tokens are sorted by expert, and each expert's begin at a new block of rows, so that a block needs
one weight. Everything is counted on the device, with sizes that depend on the number of choices alone: nothing waits.
Source of the scheme: the grouped product of MegaBlocks (arXiv 2211.15841).

Shapes: T tokens, K choices a token, C = T × K choices, E experts, P choices with each expert's rounded up to whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loadmaster.kernels.paged_attention import multiprocessors, power_of_two

FEW_CHOICES = 256
"""Up to so many choices, of so many experts, one program of a kernel compares all pairs instead of sorting."""

PROGRAMS_PER_MULTIPROCESSOR = 4
MIN_STEPS = 4
"""A product of few columns divides the depth over programs that have at least so many steps each."""

FEW_ROWS = 64
"""Up to so many rows a product reads the stored weight; with more, dequantising it first is faster."""


@dataclass(frozen=True, slots=True)
class BlockFactors:
    """The factors of an FP8 weight ``[…, N, K]``: ``scale`` ``[…, rows, columns]`` in float32.

    ``row_of_N`` says which row of ``scale`` holds the factors of each row of the weight; its column is the weight's column
    divided by ``block_columns``.
    """

    scale: Tensor
    row_of: Tensor
    block_columns: int


@dataclass(frozen=True, slots=True)
class Groups:
    """Choices sorted by expert. ``rows`` ``[P]``: choices, C where a block is not full. ``experts`` ``[P / block_rows]``: the
    expert of each block, E for blocks that are not used."""

    rows: Tensor
    experts: Tensor
    num_choices: int
    block_rows: int


def group_choices(experts_C: Tensor, num_experts: int) -> Groups:
    """Sort choices, given as expert ids, by expert."""
    num_choices = len(experts_C)
    block_rows = 16 if num_choices <= 16 * num_experts else 64
    num_blocks = num_choices // block_rows + min(num_experts, num_choices)
    device = experts_C.device
    if num_choices <= FEW_CHOICES and num_experts <= FEW_CHOICES:
        return _group_few(experts_C, num_experts, block_rows, num_blocks)
    sorted_C, order_C = experts_C.sort(stable=True)
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
    counts_E.scatter_add_(0, experts_C, torch.ones_like(experts_C))
    padded_E = (counts_E + block_rows - 1) // block_rows * block_rows
    stops_E = padded_E.cumsum(0)
    shift_E = (stops_E - padded_E) - (counts_E.cumsum(0) - counts_E)
    places_C = torch.arange(num_choices, device=device) + shift_E[sorted_C]
    rows_P = torch.full((num_blocks * block_rows,), num_choices, dtype=torch.int64, device=device)
    rows_P.scatter_(0, places_C, order_C)
    firsts = torch.arange(0, num_blocks * block_rows, block_rows, device=device)
    return Groups(rows_P, torch.searchsorted(stops_E, firsts, right=True), num_choices, block_rows)


def _group_few(experts_C: Tensor, num_experts: int, block_rows: int, num_blocks: int) -> Groups:
    from loadmaster.kernels.block_product_triton import group_few

    num_choices = len(experts_C)
    rows_P = torch.full((num_blocks * block_rows,), num_choices, dtype=torch.int64, device=experts_C.device)
    experts = torch.empty(num_blocks, dtype=torch.int64, device=experts_C.device)
    group_few[(1,)](
        experts_C,
        rows_P,
        experts,
        num_choices,
        num_experts,
        num_blocks,
        BLOCK_ROWS=block_rows,
        CHOICES=power_of_two(num_choices),
        EXPERTS=power_of_two(num_experts),
        BLOCKS=power_of_two(num_blocks),
        num_warps=8,
    )
    return Groups(rows_P, experts, num_choices, block_rows)


def product(x_TK: Tensor, weight_NK: Tensor, factors: BlockFactors | None) -> Tensor:
    """Return ``x @ weight.T`` ``[T, N]`` in the dtype of ``x``, with sums in float32; for few rows."""
    num_rows = len(x_TK)
    rows = max(16, power_of_two(num_rows))
    return _launch(x_TK, weight_NK[None], factors, None, (1, rows), num_rows, 1, None)


def grouped_product(
    x_TK: Tensor,
    weight_ENK: Tensor,
    factors: BlockFactors | None,
    groups: Groups,
    *,
    choices_per_row: int = 1,
    shares_C: Tensor | None = None,
) -> Tensor:
    """Return ``[C, N]``: for each choice the product of its row of ``x`` and its expert's weight, times its share.

    ``choices_per_row``: choice ``c`` reads row ``c // choices_per_row`` of ``x``.
    """
    sizes = len(groups.experts), groups.block_rows
    return _launch(x_TK, weight_ENK, factors, groups, sizes, groups.num_choices, choices_per_row, shares_C)


def row_map(grids: Sequence[tuple[tuple[int, int], tuple[int, int], int, int]], device: torch.device) -> Tensor:
    """Return which row of the factors belongs to each row of a weight, int32 ``[N]``.

    ``grids``: the weight's rows, the factors' rows, rows of a block, and how many rows of the first block are missing.
    """
    parts = [
        first + (torch.arange(rows[1] - rows[0], dtype=torch.int32) + phase) // block
        for rows, (first, _), block, phase in grids
    ]
    return torch.cat(parts).to(torch.int32).to(device)


def _launch(
    x: Tensor,
    weight_ENK: Tensor,
    factors: BlockFactors | None,
    groups: Groups | None,
    sizes: tuple[int, int],
    num_rows: int,
    choices_per_row: int,
    shares_C: Tensor | None,
) -> Tensor:
    from loadmaster.kernels.block_product_triton import block_product, sum_splits

    num_experts, width, depth = weight_ENK.shape
    num_blocks, block_rows = sizes
    out = x.new_empty((num_rows, width))
    is_wide = x.dtype == torch.float32
    columns, step, num_stages = 32, 128, 5
    if is_wide:
        columns, step, num_stages = 32, 32, 2
    elif block_rows > 16:
        columns, step, num_stages = (64, 128, 4) if groups is None else (128, 64, 3)
    if factors is not None:
        while factors.block_columns % step:
            step //= 2
        assert step >= 16, "blocks of less than 16 columns"
    scale = x if factors is None else factors.scale
    num_programs = num_blocks * -(-width // columns)
    num_splits = _num_splits(num_programs, -(-depth // step), x.device) if groups is None else 1
    sums = out if num_splits == 1 else x.new_empty((num_splits, num_rows, width), dtype=torch.float32)
    block_product[num_blocks, -(-width // columns), num_splits](
        x,
        weight_ENK,
        scale,
        out if factors is None else factors.row_of,
        sums,
        out if groups is None else groups.rows,
        out if groups is None else groups.experts,
        out if shares_C is None else shares_C,
        num_rows,
        num_experts,
        width,
        depth,
        x.stride(0),
        *weight_ENK.stride()[:2],
        *(scale.stride()[-3:-1] if factors is not None and scale.dim() == 3 else (0, scale.stride(0))),
        CHOICES_PER_ROW=choices_per_row,
        HAS_FACTORS=factors is not None,
        HAS_GROUPS=groups is not None,
        HAS_SHARES=shares_C is not None,
        BLOCK_COLUMNS=1 if factors is None else factors.block_columns,
        ROWS=block_rows,
        COLUMNS=columns,
        STEP=step,
        NUM_SPLITS=num_splits,
        PRECISION="ieee" if is_wide else "tf32",
        num_warps=4,
        num_stages=num_stages,
    )
    if num_splits > 1:
        sum_splits[(-(-out.numel() // 512),)](sums, out, out.numel(), NUM_SPLITS=num_splits, BLOCK=512, num_warps=4)
    return out


def _num_splits(num_programs: int, num_steps: int, device: torch.device) -> int:
    """Return over how many programs the depth of a product is divided: a power of two."""
    wanted = min(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device) // num_programs, num_steps // MIN_STEPS)
    return 1 << max(0, wanted.bit_length() - 1)
