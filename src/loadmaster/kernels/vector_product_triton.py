"""The kernels of `loadmaster.kernels.vector_product`. Importing this needs Triton.

Suffixes: N columns of the output (rows of the weight), K columns of the weight, L groups of LANE of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_products(
    acc_NL, x, weight, scale_N, is_n_N, start, stop, depth,
    HAS_FACTORS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STEP: tl.constexpr, LANE: tl.constexpr,
    IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Add ``x * weight`` for columns ``start`` to ``stop``; ``weight`` and ``scale_N`` point to rows. LANE columns are summed
    by the thread that loads them, and have one factor."""
    k_K = tl.arange(0, STEP)
    k_L = tl.arange(0, STEP // LANE) * LANE
    for k in range(start, stop, STEP):
        if IS_EVEN:
            weight_NK = tl.load(weight + k + k_K[None, :], mask=is_n_N[:, None], other=0.0)
            x_K = tl.load(x + k + k_K)
        else:
            is_k_K = k + k_K < depth
            weight_NK = tl.load(weight + k + k_K[None, :], mask=is_n_N[:, None] & is_k_K[None, :], other=0.0)
            x_K = tl.load(x + k + k_K, mask=is_k_K, other=0.0)
        part_NK = weight_NK.to(tl.float32) * x_K.to(tl.float32)[None, :]
        part_NL = tl.sum(tl.reshape(part_NK, [weight_NK.shape[0], STEP // LANE, LANE]), 2)
        if HAS_FACTORS:
            is_l_NL = is_n_N[:, None] & (k + k_L < depth)[None, :]
            acc_NL += part_NL * tl.load(
                scale_N[:, None] + ((k + k_L) // BLOCK_COLUMNS)[None, :], mask=is_l_NL, other=0.0
            )
        else:
            acc_NL += part_NL
    return acc_NL


@triton.jit
def vector_product(
    x, weight, scale, scale_row_of, out, width, depth, x_row, weight_row, scale_row,
    HAS_FACTORS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    LANE: tl.constexpr, IS_EVEN: tl.constexpr, NUM_SPLITS: tl.constexpr,
):  # fmt: skip
    """Compute some columns of one row; with several splits each sums a part of the depth, into its own copy of the output."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    n_N = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_n_N = n_N < width
    scale_N = scale + n_N
    if HAS_FACTORS:
        scale_N = scale + tl.load(scale_row_of + n_N, mask=is_n_N, other=0) * scale_row
    part = tl.cdiv(tl.cdiv(depth, STEP), NUM_SPLITS) * STEP
    acc_NL = tl.zeros([COLUMNS, STEP // LANE], tl.float32)
    acc_NL = _add_products(
        acc_NL, x + row * x_row, weight + n_N.to(tl.int64)[:, None] * weight_row, scale_N, is_n_N,
        split * part, tl.minimum(split * part + part, depth), depth,
        HAS_FACTORS, BLOCK_COLUMNS, STEP, LANE, IS_EVEN,
    )  # fmt: skip
    out_at = out + (split.to(tl.int64) * tl.num_programs(0) + row) * width + n_N
    tl.store(out_at, tl.sum(acc_NL, 1).to(out.dtype.element_ty), mask=is_n_N)


@triton.jit
def gate_up(
    x, weight, scale, scale_row_of, experts, out, width, depth,
    x_row, weight_expert, weight_row, scale_expert, scale_row,
    CHOICES: tl.constexpr, HAS_FACTORS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, LANE: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Compute some columns of ``silu(gate) * up`` for one choice; the weight has ``width`` rows of gate, then those of up."""
    choice = tl.program_id(0)
    n_N = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_n_N = n_N < width
    expert = tl.load(experts + choice).to(tl.int64)
    x += (choice // CHOICES).to(tl.int64) * x_row
    weight_N1 = weight + expert * weight_expert + n_N.to(tl.int64)[:, None] * weight_row
    scale_N = scale + n_N
    up_scale_N = scale_N
    if HAS_FACTORS:
        scale_N = scale + expert * scale_expert + tl.load(scale_row_of + n_N, mask=is_n_N, other=0) * scale_row
        up_row_N = tl.load(scale_row_of + width + n_N, mask=is_n_N, other=0)
        up_scale_N = scale + expert * scale_expert + up_row_N * scale_row
    zero_NL = tl.zeros([COLUMNS, STEP // LANE], tl.float32)
    gate_NL = _add_products(
        zero_NL, x, weight_N1, scale_N, is_n_N, 0, depth, depth, HAS_FACTORS, BLOCK_COLUMNS, STEP, LANE, IS_EVEN
    )  # fmt: skip
    weight_N1 += width.to(tl.int64) * weight_row
    up_NL = _add_products(
        zero_NL, x, weight_N1, up_scale_N, is_n_N, 0, depth, depth, HAS_FACTORS, BLOCK_COLUMNS, STEP, LANE, IS_EVEN
    )  # fmt: skip
    dtype = out.dtype.element_ty
    gate_N = tl.sum(gate_NL, 1).to(dtype).to(tl.float32)
    up_N = tl.sum(up_NL, 1).to(dtype).to(tl.float32)
    inner_N = (gate_N / (1.0 + tl.exp(-gate_N))).to(dtype).to(tl.float32) * up_N
    tl.store(out + choice.to(tl.int64) * width + n_N, inner_N.to(dtype), mask=is_n_N)


@triton.jit
def down(
    inner, weight, scale, scale_row_of, experts, shares, out, width, depth,
    weight_expert, weight_row, scale_expert, scale_row,
    CHOICES: tl.constexpr, HAS_FACTORS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, LANE: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Compute some columns of one token's sum over its experts, weighted."""
    token = tl.program_id(0).to(tl.int64)
    n_N = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_n_N = n_N < width
    scale_row_N = tl.zeros([COLUMNS], tl.int32)
    if HAS_FACTORS:
        scale_row_N = tl.load(scale_row_of + n_N, mask=is_n_N, other=0)
    total_NL = tl.zeros([COLUMNS, STEP // LANE], tl.float32)
    for c in range(CHOICES):
        choice = token * CHOICES + c
        expert = tl.load(experts + choice).to(tl.int64)
        share = tl.load(shares + choice).to(tl.float32)
        weight_N1 = weight + expert * weight_expert + n_N.to(tl.int64)[:, None] * weight_row
        part_NL = _add_products(
            tl.zeros([COLUMNS, STEP // LANE], tl.float32), inner + choice * depth, weight_N1,
            scale + expert * scale_expert + scale_row_N * scale_row, is_n_N, 0, depth, depth,
            HAS_FACTORS, BLOCK_COLUMNS, STEP, LANE, IS_EVEN,
        )  # fmt: skip
        total_NL += part_NL * share
    tl.store(out + token * width + n_N, tl.sum(total_NL, 1).to(out.dtype.element_ty), mask=is_n_N)


@triton.jit
def choose_experts(
    logits, bias, correction, experts, shares, num_experts, scaling,
    IS_SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CORRECTION: tl.constexpr, NORMALISES: tl.constexpr,
    NUM_SPLITS: tl.constexpr, CHOICES: tl.constexpr, EXPERTS: tl.constexpr, PADDED_CHOICES: tl.constexpr,
):  # fmt: skip
    """Choose the experts of one token, whose logits are the sum of splits. Of equal experts the first is chosen."""
    token = tl.program_id(0).to(tl.int64)
    e_E = tl.arange(0, EXPERTS)
    is_e_E = e_E < num_experts
    logit_E = tl.zeros([EXPERTS], tl.float32)
    for split in range(NUM_SPLITS):
        at = (split * tl.num_programs(0) + token) * num_experts
        logit_E += tl.load(logits + at + e_E, mask=is_e_E, other=0.0)
    if HAS_BIAS:
        logit_E += tl.load(bias + e_E, mask=is_e_E, other=0.0).to(tl.float32)
    if IS_SIGMOID:
        score_E = 1.0 / (1.0 + tl.exp(-logit_E))
    else:
        logit_E = tl.where(is_e_E, logit_E, float("-inf"))
        score_E = tl.exp(logit_E - tl.max(logit_E, 0))
        score_E = score_E / tl.sum(score_E, 0)
    choice_E = score_E
    if HAS_CORRECTION:
        choice_E += tl.load(correction + e_E, mask=is_e_E, other=0.0).to(tl.float32)
    choice_E = tl.where(is_e_E, choice_E, float("-inf"))
    c_C = tl.arange(0, PADDED_CHOICES)
    expert_C = tl.zeros([PADDED_CHOICES], tl.int32)
    share_C = tl.zeros([PADDED_CHOICES], tl.float32)
    for c in range(CHOICES):
        best = tl.argmax(choice_E, 0)
        expert_C = tl.where(c_C == c, best, expert_C)
        share_C = tl.where(c_C == c, tl.sum(tl.where(e_E == best, score_E, 0.0), 0), share_C)
        choice_E = tl.where(e_E == best, float("-inf"), choice_E)
    if NORMALISES:
        share_C = share_C / (tl.sum(share_C, 0) + 1e-20)
    at_C = token * CHOICES + c_C
    tl.store(experts + at_C, expert_C.to(tl.int64), mask=c_C < CHOICES)
    tl.store(shares + at_C, share_C * scaling, mask=c_C < CHOICES)
