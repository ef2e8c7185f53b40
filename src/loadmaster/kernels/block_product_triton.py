"""The kernel of `loadmaster.kernels.block_product`. Importing this needs Triton.

Suffixes: M rows of a block, N columns of the output, K columns of the weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

VARYING = ["num_rows"]


@triton.jit(do_not_specialize=VARYING)
def block_product(
    x, weight, scale, scale_row_of, out, rows, experts, shares,
    num_rows, num_experts, width, depth, x_row, weight_expert, weight_row, scale_expert, scale_row,
    CHOICES_PER_ROW: tl.constexpr, HAS_FACTORS: tl.constexpr, HAS_GROUPS: tl.constexpr, HAS_SHARES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    NUM_SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one block of rows for some columns of the output, whose rows are contiguous.

    With several splits each sums a part of the depth, into its own copy of the output.
    """
    block = tl.program_id(0)
    n_N = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_n_N = n_N < width
    row_M = block * ROWS + tl.arange(0, ROWS)
    expert = tl.zeros([], tl.int64)
    if HAS_GROUPS:
        row_M = tl.load(rows + row_M)
        expert = tl.load(experts + block).to(tl.int64)
    if expert < num_experts:
        is_row_M = row_M < num_rows
        k_K = tl.arange(0, STEP)
        x_at = x + (row_M // CHOICES_PER_ROW).to(tl.int64)[:, None] * x_row + k_K[None, :]
        weight_at = weight + expert * weight_expert + n_N.to(tl.int64)[None, :] * weight_row + k_K[:, None]
        scale_at = scale
        if HAS_FACTORS:
            scale_row_N = tl.load(scale_row_of + n_N, mask=is_n_N, other=0)
            scale_at = scale + expert * scale_expert + scale_row_N * scale_row
        acc_MN = tl.zeros([ROWS, COLUMNS], tl.float32)
        part = tl.cdiv(tl.cdiv(depth, STEP), NUM_SPLITS) * STEP
        start = tl.program_id(2) * part
        for k in range(start, tl.minimum(start + part, depth), STEP):
            is_k_K = k + k_K < depth
            x_MK = tl.load(x_at + k, mask=is_row_M[:, None] & is_k_K[None, :], other=0.0)
            weight_KN = tl.load(weight_at + k, mask=is_n_N[None, :] & is_k_K[:, None], other=0.0).to(x_MK.dtype)
            if HAS_FACTORS:
                factor_N = tl.load(scale_at + k // BLOCK_COLUMNS, mask=is_n_N, other=0.0)
                acc_MN += tl.dot(x_MK, weight_KN, input_precision=PRECISION) * factor_N[None, :]
            else:
                acc_MN = tl.dot(x_MK, weight_KN, acc_MN, input_precision=PRECISION)
        if HAS_SHARES:
            acc_MN *= tl.load(shares + row_M, mask=is_row_M, other=0.0).to(tl.float32)[:, None]
        out += tl.program_id(2).to(tl.int64) * num_rows * width
        out_at = out + row_M.to(tl.int64)[:, None] * width + n_N[None, :]
        tl.store(out_at, acc_MN.to(out.dtype.element_ty), mask=is_row_M[:, None] & is_n_N[None, :])


@triton.jit
def sum_splits(sums, out, num_elements, NUM_SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the copies of an output."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < num_elements
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        total += tl.load(sums + split * num_elements + at, mask=is_in, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=is_in)


@triton.jit(do_not_specialize=["num_choices", "num_blocks"])
def group_few(
    experts, rows, block_experts, num_choices, num_experts, num_blocks,
    BLOCK_ROWS: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Sort few choices by expert, each expert's from a new block on; ``rows`` is filled with ``num_choices`` before."""
    choice_C = tl.arange(0, CHOICES)
    other_D = tl.arange(0, CHOICES)
    expert_E = tl.arange(0, EXPERTS)
    chosen_C = tl.load(experts + choice_C, mask=choice_C < num_choices, other=EXPERTS).to(tl.int32)
    chosen_D = tl.load(experts + other_D, mask=other_D < num_choices, other=EXPERTS).to(tl.int32)
    is_of_CE = chosen_C[:, None] == expert_E[None, :]
    count_E = tl.sum(is_of_CE.to(tl.int32), 0)
    padded_E = tl.cdiv(count_E, BLOCK_ROWS) * BLOCK_ROWS
    stop_E = tl.cumsum(padded_E, 0)
    first_C = tl.sum(tl.where(is_of_CE, (stop_E - padded_E)[None, :], 0), 1)
    is_earlier_CD = (chosen_C[:, None] == chosen_D[None, :]) & (other_D[None, :] < choice_C[:, None])
    place_C = first_C + tl.sum(is_earlier_CD.to(tl.int32), 1)
    tl.store(rows + place_C, choice_C.to(tl.int64), mask=choice_C < num_choices)
    block_B = tl.arange(0, BLOCKS)
    is_past_BE = (stop_E[None, :] <= block_B[:, None] * BLOCK_ROWS) & (expert_E[None, :] < num_experts)
    tl.store(block_experts + block_B, tl.sum(is_past_BE.to(tl.int32), 1).to(tl.int64), mask=block_B < num_blocks)
