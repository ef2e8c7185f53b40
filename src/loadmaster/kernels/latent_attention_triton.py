"""The kernels of `loadmaster.kernels.latent_attention`. Importing this needs Triton.

Suffixes: T tokens of a block, M heads of a block, C cached tokens of a tile, R elements of the latent, D of the rotary part,
J rows of ``kv_b`` in one head, V elements of a head's output.
"""

from __future__ import annotations

import triton
import triton.language as tl

from loadmaster.kernels.rotary_triton import rotated


@triton.jit
def norm_and_store(
    q_kv, q_weight, kv_weight, cos, sin, slots, q_out, rows,
    token_pitch, angle_pitch, slot_pitch, q_rank, kv_rank, num_pairs, eps,
    IS_INTERLEAVED: tl.constexpr, Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Norm one token's query latent into ``q_out``; or norm its latent, rotate its key, and write both to the cache."""
    token = tl.program_id(0).to(tl.int64)
    x = q_kv + token * token_pitch
    if tl.program_id(1) == 0:
        q_at = tl.arange(0, Q_BLOCK)
        q_normed = _normed(x, q_weight, q_at, q_rank, eps, q_out.dtype.element_ty)
        tl.store(q_out + token * q_rank + q_at, q_normed, mask=q_at < q_rank)
    else:
        kv = x + q_rank
        row = rows + tl.load(slots + token) * slot_pitch
        at = tl.arange(0, KV_BLOCK)
        tl.store(row + at, _normed(kv, kv_weight, at, kv_rank, eps, rows.dtype.element_ty), mask=at < kv_rank)
        pair = tl.arange(0, PAIRS)
        first, second = rotated(
            kv + kv_rank, cos + token * angle_pitch, sin + token * angle_pitch, pair, num_pairs, IS_INTERLEAVED
        )
        tl.store(row + kv_rank + pair, first.to(rows.dtype.element_ty), mask=pair < num_pairs)
        tl.store(row + kv_rank + num_pairs + pair, second.to(rows.dtype.element_ty), mask=pair < num_pairs)


@triton.jit
def _normed(x, weight, at, width, eps, dtype: tl.constexpr):
    value = tl.load(x + at, mask=at < width, other=0.0).to(tl.float32)
    factor = tl.load(weight + at, mask=at < width, other=0.0)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    return (factor.to(dtype).to(tl.float32) * normed.to(dtype).to(tl.float32)).to(dtype)


@triton.jit
def absorb(
    q, cos, sin, weight, scale, scale_row_of, out,
    num_tokens, q_token, q_head, angle_pitch, weight_row, scale_row, out_token, out_head,
    HAS_FACTORS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, IS_INTERLEAVED: tl.constexpr,
    NOPE: tl.constexpr, VALUE: tl.constexpr, RANK: tl.constexpr, NUM_PAIRS: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PAIRS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply some tokens' queries of one head with the key half of ``kv_b``, for some columns of the latent; the first
    program of a head also rotates the queries' rotary part."""
    head, block, first = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * TOKENS
    token_T = first + tl.arange(0, TOKENS)
    is_token_T = token_T < num_tokens
    r_R = block * COLUMNS + tl.arange(0, COLUMNS)
    is_r_R = r_R < RANK
    q_T1 = q + token_T.to(tl.int64)[:, None] * q_token + head * q_head
    out_T1 = out + token_T.to(tl.int64)[:, None] * out_token + head * out_head
    acc_TR = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for j in range(0, NOPE, STEP):
        j_J = j + tl.arange(0, STEP)
        is_j_J = j_J < NOPE
        row_J = head * (NOPE + VALUE) + j_J
        q_TJ = tl.load(q_T1 + j_J[None, :], mask=is_token_T[:, None] & is_j_J[None, :], other=0.0)
        is_in_JR = is_j_J[:, None] & is_r_R[None, :]
        weight_JR = tl.load(weight + row_J[:, None] * weight_row + r_R[None, :], mask=is_in_JR, other=0.0)
        if HAS_FACTORS:  # COLUMNS divide a block
            scale_row_J = tl.load(scale_row_of + row_J, mask=is_j_J, other=0)
            factor_J = tl.load(
                scale + scale_row_J * scale_row + block * COLUMNS // BLOCK_COLUMNS, mask=is_j_J, other=0.0
            )
            weight_JR = (weight_JR.to(tl.float32) * factor_J[:, None]).to(q_TJ.dtype)
        acc_TR = tl.dot(q_TJ, weight_JR.to(q_TJ.dtype), acc_TR, input_precision=PRECISION)
    dtype = out.dtype.element_ty
    tl.store(out_T1 + r_R[None, :], acc_TR.to(dtype), mask=is_token_T[:, None] & is_r_R[None, :])
    if block == 0:
        for t in range(first, tl.minimum(first + TOKENS, num_tokens)):
            pair = tl.arange(0, PAIRS)
            x = q + t * q_token + head * q_head + NOPE
            a, b = rotated(x, cos + t * angle_pitch, sin + t * angle_pitch, pair, NUM_PAIRS, IS_INTERLEAVED)
            out_at = out + t * out_token + head * out_head + RANK + pair
            tl.store(out_at, a.to(dtype), mask=pair < NUM_PAIRS)
            tl.store(out_at + NUM_PAIRS, b.to(dtype), mask=pair < NUM_PAIRS)


@triton.jit(do_not_specialize=["lengths", "page_table", "table_row", "topk_pitch"],
            do_not_specialize_on_alignment=["lengths", "page_table"])  # fmt: skip
def attend(
    q, rows, topk, lengths, page_table, partial, lse, scale,
    q_token, q_head, slot_pitch, table_row, num_selected, topk_pitch, num_heads,
    RANK: tl.constexpr, ROPE: tl.constexpr, PADDED_RANK: tl.constexpr, PADDED_ROPE: tl.constexpr,
    PAGE_SIZE: tl.constexpr, HEADS: tl.constexpr, COLUMNS: tl.constexpr, NUM_SPLITS: tl.constexpr,
    HAS_SELECTION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend with some heads of one token to one part of the cached tokens, or of those that are selected.

    ``scale`` includes log2(e). The result, normalised by its own sum, goes to ``partial``, the logarithm of the sum to ``lse``:
    -inf if the part is empty. A context that is not longer than its selection attends to all tokens.
    """
    token, split = tl.program_id(0), tl.program_id(2)
    head_M = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head_M = head_M < num_heads
    r_R, d_D = tl.arange(0, PADDED_RANK), tl.arange(0, PADDED_ROPE)
    is_r_R, is_d_D = r_R < RANK, d_D < ROPE
    length = tl.load(lengths + token)
    count = length
    if HAS_SELECTION:
        count = tl.minimum(length, num_selected)
    part = tl.cdiv(tl.cdiv(count, COLUMNS), NUM_SPLITS) * COLUMNS
    start = split * part
    stop = tl.minimum(start + part, count)
    peak_M = tl.full([HEADS], float("-inf"), tl.float32)
    sum_M = tl.zeros([HEADS], tl.float32)
    acc_MR = tl.zeros([HEADS, PADDED_RANK], tl.float32)
    q_M1 = q + token.to(tl.int64) * q_token + head_M[:, None] * q_head
    q_MR = tl.load(q_M1 + r_R[None, :], mask=is_head_M[:, None] & is_r_R[None, :], other=0.0)
    q_MD = tl.load(q_M1 + RANK + d_D[None, :], mask=is_head_M[:, None] & is_d_D[None, :], other=0.0)
    table = page_table + token.to(tl.int64) * table_row
    for at in range(start, stop, COLUMNS):
        i_C = at + tl.arange(0, COLUMNS)
        is_key_C = i_C < stop
        position_C = i_C
        if HAS_SELECTION:
            chosen_C = tl.load(topk + token.to(tl.int64) * topk_pitch + i_C, mask=is_key_C, other=-1).to(tl.int32)
            position_C = tl.where(length > num_selected, chosen_C, i_C)
            is_key_C = is_key_C & (position_C >= 0)
        page_C = tl.load(table + position_C // PAGE_SIZE, mask=is_key_C, other=0)
        slot_C = page_C.to(tl.int64) * PAGE_SIZE + position_C % PAGE_SIZE
        row_C1 = rows + slot_C[:, None] * slot_pitch
        row_CR = tl.load(row_C1 + r_R[None, :], mask=is_key_C[:, None] & is_r_R[None, :], other=0.0)
        row_CD = tl.load(row_C1 + RANK + d_D[None, :], mask=is_key_C[:, None] & is_d_D[None, :], other=0.0)
        scores_MC = tl.dot(q_MR, tl.trans(row_CR), input_precision=PRECISION)
        scores_MC = tl.dot(q_MD, tl.trans(row_CD), scores_MC, input_precision=PRECISION) * scale
        scores_MC = tl.where(is_key_C[None, :], scores_MC, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(scores_MC, 1))
        base_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
        weights_MC = tl.exp2(scores_MC - base_M[:, None])
        rescale_M = tl.exp2(peak_M - base_M)
        sum_M = sum_M * rescale_M + tl.sum(weights_MC, 1)
        weights_MC = weights_MC.to(row_CR.dtype)
        acc_MR = tl.dot(weights_MC, row_CR, acc_MR * rescale_M[:, None], input_precision=PRECISION)
        peak_M = new_peak_M
    at_M = (token.to(tl.int64) * num_heads + head_M) * NUM_SPLITS + split
    tl.store(lse + at_M, tl.where(sum_M > 0, peak_M + tl.log2(sum_M), float("-inf")), mask=is_head_M)
    if start < stop:
        acc_MR *= tl.where(sum_M > 0, 1.0 / sum_M, 0.0)[:, None]
        tl.store(partial + at_M[:, None] * PADDED_RANK + r_R[None, :], acc_MR, mask=is_head_M[:, None])


@triton.jit
def merge(
    partial, lse, out, num_heads,
    RANK: tl.constexpr, PADDED_RANK: tl.constexpr, COLUMNS: tl.constexpr, NUM_SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one head of one token: the mean of their results, weighted by their sums. ``out`` is contiguous."""
    at = tl.program_id(0).to(tl.int64) * num_heads + tl.program_id(1)
    split_S = tl.arange(0, NUM_SPLITS)
    r_R = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    lse_S = tl.load(lse + at * NUM_SPLITS + split_S)
    weight_S = tl.exp2(lse_S - tl.max(lse_S, 0))
    is_used_S = lse_S > float("-inf")
    part_SR = partial + (at * NUM_SPLITS + split_S)[:, None] * PADDED_RANK + r_R[None, :]
    value_SR = tl.load(part_SR, mask=is_used_S[:, None], other=0.0)
    value_R = tl.sum(value_SR * weight_S[:, None], 0) / tl.sum(weight_S, 0)
    tl.store(out + at * RANK + r_R, value_R.to(out.dtype.element_ty), mask=r_R < RANK)


@triton.jit
def expand(
    latent, weight, scale, scale_row_of, out,
    num_tokens, num_heads, weight_row, scale_row,
    HAS_FACTORS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, NOPE: tl.constexpr, VALUE: tl.constexpr, RANK: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply some tokens' latents of one head with the value half of ``kv_b``, for some elements of the head's output.

    ``latent`` ``[T, N, R]`` and ``out`` ``[T, N, V]`` are contiguous.
    """
    head, first = tl.program_id(0).to(tl.int64), tl.program_id(2) * TOKENS
    token_T = (first + tl.arange(0, TOKENS)).to(tl.int64)
    is_token_T = token_T < num_tokens
    v_V = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_v_V = v_V < VALUE
    row_V = head * (NOPE + VALUE) + NOPE + v_V
    scale_V = scale + row_V
    if HAS_FACTORS:
        scale_V = scale + tl.load(scale_row_of + row_V, mask=is_v_V, other=0) * scale_row
    acc_TV = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for r in range(0, RANK, STEP):
        r_R = r + tl.arange(0, STEP)
        is_r_R = r_R < RANK
        latent_at = latent + (token_T * num_heads + head)[:, None] * RANK + r_R[None, :]
        latent_TR = tl.load(latent_at, mask=is_token_T[:, None] & is_r_R[None, :], other=0.0)
        is_in_VR = is_v_V[:, None] & is_r_R[None, :]
        weight_VR = tl.load(weight + row_V[:, None] * weight_row + r_R[None, :], mask=is_in_VR, other=0.0)
        if HAS_FACTORS:  # STEP divides a block
            factor_V = tl.load(scale_V + r // BLOCK_COLUMNS, mask=is_v_V, other=0.0)
            weight_VR = (weight_VR.to(tl.float32) * factor_V[:, None]).to(latent_TR.dtype)
        weight_RV = tl.trans(weight_VR.to(latent_TR.dtype))
        acc_TV = tl.dot(latent_TR, weight_RV, acc_TV, input_precision=PRECISION)
    out_at = out + (token_T * num_heads + head)[:, None] * VALUE + v_V[None, :]
    tl.store(out_at, acc_TV.to(out.dtype.element_ty), mask=is_token_T[:, None] & is_v_V[None, :])
