"""The kernels of `loadmaster.kernels.paged_attention`. Importing this needs Triton.

Suffixes: M rows of a block (tokens × heads of a group), C columns (cached tokens), D elements of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Where numbers of a step lie in its buffer varies from step to step; each alignment would be compiled anew.
VARYING = ["blocks", "query_starts", "lengths", "page_table", "table_row", "window"]


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=VARYING)
def attend_blocks(
    q, k, v, out, partial, lse, sinks, blocks, query_starts, lengths, page_table,
    scale, window,
    q_token, q_head, k_head, k_slot, v_head, v_slot, out_token, out_head, table_row,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NUM_SPLITS: tl.constexpr,
    HAS_BLOCKS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend with one block of queries, for one head of keys, to one part of the keys.

    ``scale`` includes log2(e): exponentials are powers of two. With several splits, the result is normalised by its own sum
    and goes to ``partial``, with the logarithm of that sum in ``lse``; -inf if the part is empty.
    """
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context, first = block, 0
    if HAS_BLOCKS:
        context, first = tl.load(blocks + 2 * block), tl.load(blocks + 2 * block + 1)
    query_start = tl.load(query_starts + context)
    num_queries = tl.load(query_starts + context + 1) - query_start
    num_cached = tl.load(lengths + context) - num_queries

    row_M = tl.arange(0, ROWS)
    token_M = first + row_M // GROUP
    head_M = kv_head * GROUP + row_M % GROUP
    is_row_M = (row_M < ROWS // GROUP * GROUP) & (token_M < num_queries)
    position_M = num_cached + token_M
    d_D = tl.arange(0, PADDED_DIM)
    is_d_D = d_D < HEAD_DIM
    q_rows_M = (query_start + token_M).to(tl.int64) * q_token + head_M * q_head
    q_MD = tl.load(q + q_rows_M[:, None] + d_D[None, :], mask=is_row_M[:, None] & is_d_D[None, :], other=0.0)

    stop = num_cached + tl.minimum(first + ROWS // GROUP, num_queries)
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(num_cached + first - window + 1, 0) // COLUMNS * COLUMNS
    full_stop = num_cached + first + 1  # all queries attend to all earlier keys, if there is no window
    if NUM_SPLITS > 1:
        part = tl.cdiv(tl.cdiv(stop - start, COLUMNS), NUM_SPLITS) * COLUMNS
        start += split * part
        stop = tl.minimum(stop, start + part)
    full_stop = tl.minimum(full_stop, stop)
    if HAS_WINDOW:
        full_stop = start
    whole_stop = start + tl.maximum(full_stop - start, 0) // COLUMNS * COLUMNS

    peak_M = tl.full([ROWS], float("-inf"), tl.float32)
    sum_M = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:  # noqa: SIM102
        if split == 0:
            peak_M = tl.load(sinks + head_M, mask=is_row_M, other=0.0).to(tl.float32) * 1.4426950408889634
            sum_M = tl.full([ROWS], 1.0, tl.float32)
    acc_MD = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    k_base = k + kv_head.to(tl.int64) * k_head
    v_base = v + kv_head.to(tl.int64) * v_head
    table = page_table + context.to(tl.int64) * table_row
    for at in range(start, whole_stop, COLUMNS):
        peak_M, sum_M, acc_MD = _fold(
            peak_M, sum_M, acc_MD, q_MD, position_M, at, stop, k_base, v_base, table, k_slot, v_slot, scale, window,
            HEAD_DIM, PADDED_DIM, PAGE_SIZE, COLUMNS, False, HAS_WINDOW, PRECISION,
        )  # fmt: skip
    for at in range(whole_stop, stop, COLUMNS):
        peak_M, sum_M, acc_MD = _fold(
            peak_M, sum_M, acc_MD, q_MD, position_M, at, stop, k_base, v_base, table, k_slot, v_slot, scale, window,
            HEAD_DIM, PADDED_DIM, PAGE_SIZE, COLUMNS, True, HAS_WINDOW, PRECISION,
        )  # fmt: skip

    share_M = tl.where(sum_M > 0, 1.0 / sum_M, 0.0)
    acc_MD *= share_M[:, None]
    if NUM_SPLITS == 1:
        out_rows_M = (query_start + token_M).to(tl.int64) * out_token + head_M * out_head
        mask_MD = is_row_M[:, None] & is_d_D[None, :]
        tl.store(out + out_rows_M[:, None] + d_D[None, :], acc_MD.to(out.dtype.element_ty), mask=mask_MD)
    else:
        row_base = ((block * tl.num_programs(1) + kv_head) * NUM_SPLITS + split).to(tl.int64) * ROWS
        tl.store(lse + row_base + row_M, tl.where(sum_M > 0, peak_M + tl.log2(sum_M), float("-inf")))
        if start < stop:
            rows_M = row_base + row_M
            tl.store(partial + rows_M[:, None] * PADDED_DIM + d_D[None, :], acc_MD, mask=is_row_M[:, None])


@triton.jit
def _fold(
    peak_M, sum_M, acc_MD, q_MD, position_M, at, stop, k_base, v_base, table, k_slot, v_slot, scale, window,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, COLUMNS: tl.constexpr,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add ``COLUMNS`` keys from ``at`` to the running softmax. Not masked: all of them exist and all rows attend to them."""
    key_C = at + tl.arange(0, COLUMNS)
    is_key_C = key_C < stop
    d_D = tl.arange(0, PADDED_DIM)
    is_d_D = d_D < HEAD_DIM
    if IS_MASKED:  # noqa: SIM108
        page_C = tl.load(table + key_C // PAGE_SIZE, mask=is_key_C, other=0)
    else:
        page_C = tl.load(table + key_C // PAGE_SIZE)
    slot_C = page_C.to(tl.int64) * PAGE_SIZE + key_C % PAGE_SIZE
    k_DC_at = k_base + slot_C[None, :] * k_slot + d_D[:, None]
    v_CD_at = v_base + slot_C[:, None] * v_slot + d_D[None, :]
    if IS_MASKED:
        k_DC = tl.load(k_DC_at, mask=is_key_C[None, :] & is_d_D[:, None], other=0.0)
        v_CD = tl.load(v_CD_at, mask=is_key_C[:, None] & is_d_D[None, :], other=0.0)
    elif HEAD_DIM == PADDED_DIM:
        k_DC = tl.load(k_DC_at)
        v_CD = tl.load(v_CD_at)
    else:
        k_DC = tl.load(k_DC_at, mask=is_d_D[:, None], other=0.0)
        v_CD = tl.load(v_CD_at, mask=is_d_D[None, :], other=0.0)
    scores_MC = tl.dot(q_MD, k_DC, input_precision=PRECISION) * scale
    if IS_MASKED:
        allowed_MC = key_C[None, :] <= position_M[:, None]
        if HAS_WINDOW:
            allowed_MC &= key_C[None, :] > position_M[:, None] - window
        scores_MC = tl.where(allowed_MC & is_key_C[None, :], scores_MC, float("-inf"))
    new_peak_M = tl.maximum(peak_M, tl.max(scores_MC, 1))
    base_M = new_peak_M
    if IS_MASKED:
        base_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
    weights_MC = tl.exp2(scores_MC - base_M[:, None])
    rescale_M = tl.exp2(peak_M - base_M)
    sum_M = sum_M * rescale_M + tl.sum(weights_MC, 1)
    acc_MD = tl.dot(weights_MC.to(v_CD.dtype), v_CD, acc_MD * rescale_M[:, None], input_precision=PRECISION)
    return new_peak_M, sum_M, acc_MD


@triton.jit(do_not_specialize=VARYING[:2], do_not_specialize_on_alignment=VARYING[:2])
def merge_splits(
    partial, lse, out, blocks, query_starts, out_token, out_head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
    ROWS: tl.constexpr, NUM_SPLITS: tl.constexpr, HAS_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one row of a block: the mean of their results, weighted by their sums."""
    block, kv_head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = block
    if HAS_BLOCKS:
        context = tl.load(blocks + 2 * block)
    query_start = tl.load(query_starts + context)
    token = row // GROUP
    if token < tl.load(query_starts + context + 1) - query_start:
        split_S = tl.arange(0, NUM_SPLITS)
        d_D = tl.arange(0, PADDED_DIM)
        row_S = ((block * tl.num_programs(1) + kv_head) * NUM_SPLITS + split_S).to(tl.int64) * ROWS + row
        lse_S = tl.load(lse + row_S)
        weight_S = tl.exp2(lse_S - tl.max(lse_S, 0))
        is_used_S = lse_S > float("-inf")
        value_SD = tl.load(partial + row_S[:, None] * PADDED_DIM + d_D[None, :], mask=is_used_S[:, None], other=0.0)
        value_D = tl.sum(value_SD * weight_S[:, None], 0) / tl.sum(weight_S, 0)
        at = (query_start + token).to(tl.int64) * out_token + (kv_head * GROUP + row % GROUP) * out_head
        tl.store(out + at + d_D, value_D.to(out.dtype.element_ty), mask=d_D < HEAD_DIM)
