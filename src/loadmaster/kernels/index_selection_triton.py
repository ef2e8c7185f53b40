"""The kernels of `loadmaster.kernels.index_selection`. Importing this needs Triton.

Suffixes: N heads of the indexer, D elements of a head, S positions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from loadmaster.kernels.rotary_triton import rotated

MAX_POSITIONS = tl.constexpr(1 << 23)
TINY = tl.constexpr(2.0**-120)


@triton.jit
def rotate_and_store(
    q, k, norm_weight, norm_bias, cos, sin, slots, q_out, rows,
    q_token, k_token, angle_pitch, slot_pitch, num_heads, dim, num_pairs, eps,
    IS_INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Rotate one head of one token's queries; or norm and rotate its key, and write it to the cache."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, pair = tl.arange(0, BLOCK), tl.arange(0, PAIRS)
    is_rest = (d >= 2 * num_pairs) & (d < dim)
    cos += token * angle_pitch
    sin += token * angle_pitch
    dtype = rows.dtype.element_ty
    if head < num_heads:
        x = q + token * q_token + head * dim
        out = q_out + (token * num_heads + head) * dim
        first, second = rotated(x, cos, sin, pair, num_pairs, IS_INTERLEAVED)
        tl.store(out + d, tl.load(x + d, mask=is_rest, other=0.0), mask=is_rest)
        tl.store(out + pair, first.to(dtype), mask=pair < num_pairs)
        tl.store(out + num_pairs + pair, second.to(dtype), mask=pair < num_pairs)
    else:
        x = k + token * k_token
        out = rows + tl.load(slots + token) * slot_pitch
        value = tl.load(x + d, mask=d < dim, other=0.0).to(tl.float32)
        mean = tl.sum(value, 0) / dim
        centred = tl.where(d < dim, value - mean, 0.0)
        share = tl.rsqrt(tl.sum(centred * centred, 0) / dim + eps)
        rest = _normed(x, norm_weight, norm_bias, d, dim, mean, share, dtype)
        tl.store(out + d, rest.to(dtype), mask=is_rest)
        if IS_INTERLEAVED:
            at_a, at_b = 2 * pair, 2 * pair + 1
        else:
            at_a, at_b = pair, num_pairs + pair
        a = _normed(x, norm_weight, norm_bias, at_a, 2 * num_pairs, mean, share, dtype)
        b = _normed(x, norm_weight, norm_bias, at_b, 2 * num_pairs, mean, share, dtype)
        c = tl.load(cos + pair, mask=pair < num_pairs, other=0.0).to(tl.float32)
        s = tl.load(sin + pair, mask=pair < num_pairs, other=0.0).to(tl.float32)
        tl.store(out + pair, (a * c - b * s).to(dtype), mask=pair < num_pairs)
        tl.store(out + num_pairs + pair, (b * c + a * s).to(dtype), mask=pair < num_pairs)


@triton.jit
def _normed(x, weight, bias, at, stop, mean, share, dtype: tl.constexpr):
    value = tl.load(x + at, mask=at < stop, other=0.0).to(tl.float32)
    factor = tl.load(weight + at, mask=at < stop, other=0.0).to(dtype).to(tl.float32)
    shift = tl.load(bias + at, mask=at < stop, other=0.0).to(dtype).to(tl.float32)
    return ((value - mean) * share * factor + shift).to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["lengths", "page_table", "table_row"],
            do_not_specialize_on_alignment=["lengths", "page_table"])  # fmt: skip
def score(
    q, weights, rows, lengths, page_table, scores, q_scale, weight_scale,
    weights_token, slot_pitch, table_row, width, num_heads, dim,
    PAGE_SIZE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Score some cached tokens for one token; ``q`` and ``scores`` are contiguous. Positions past the end are not written."""
    token, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS
    length = tl.load(lengths + token)
    if first < length:
        n_N, d_D = tl.arange(0, HEADS), tl.arange(0, BLOCK)
        is_n_N, is_d_D = n_N < num_heads, d_D < dim
        position_S = first + tl.arange(0, COLUMNS)
        is_in_S = position_S < length
        page_S = tl.load(page_table + token * table_row + position_S // PAGE_SIZE, mask=is_in_S, other=0)
        slot_S = page_S.to(tl.int64) * PAGE_SIZE + position_S % PAGE_SIZE
        k_SD = tl.load(
            rows + slot_S[:, None] * slot_pitch + d_D[None, :], mask=is_in_S[:, None] & is_d_D[None, :], other=0.0
        )
        q_at = q + (token * num_heads + n_N)[:, None] * dim + d_D[None, :]
        q_ND = tl.load(q_at, mask=is_n_N[:, None] & is_d_D[None, :], other=0.0)
        score_NS = tl.dot(q_ND, tl.trans(k_SD), input_precision=PRECISION) * q_scale
        weight_N = tl.load(weights + token * weights_token + n_N, mask=is_n_N, other=0.0).to(tl.float32) * weight_scale
        score_S = tl.sum(tl.maximum(score_NS, 0.0) * weight_N[:, None], 0)
        order_S = (position_S + MAX_POSITIONS).to(tl.float32) * TINY
        tl.store(scores + token * width + position_S, tl.where(score_S == 0, order_S, score_S), mask=is_in_S)


@triton.jit
def _ordered(scores, position_S, length):
    """Return scores as int32 that have the same order; the smallest one past the end."""
    bits_S = tl.load(scores + position_S, mask=position_S < length, other=0.0).to(tl.int32, bitcast=True)
    bits_S = tl.where(bits_S < 0, bits_S ^ 0x7FFFFFFF, bits_S)
    return tl.where(position_S < length, bits_S, -2147483648)


@triton.jit
def _add_3(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _count_3(key_S, a, b, c):
    """Return how many keys are not less than each of three."""
    counts = (key_S >= a).to(tl.int32), (key_S >= b).to(tl.int32), (key_S >= c).to(tl.int32)
    return tl.reduce(counts, 0, _add_3)


@triton.jit(do_not_specialize=["lengths", "width", "num_selected"], do_not_specialize_on_alignment=["lengths"])
def select(scores, lengths, topk, width, num_selected, BLOCK: tl.constexpr):
    """Write the positions of one token's best scores, in order, and -1 where there are fewer; ``topk`` is contiguous.

    The smallest selected score is found two bits at a time. Of the positions that have it, the last ones are selected. The
    first block of scores stays in registers; what is longer is read again each time.
    """
    token = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + token)
    scores += token * width
    topk += token * num_selected
    s_S = tl.arange(0, BLOCK)
    if length <= num_selected:
        for at in range(0, num_selected, BLOCK):
            position_S = at + s_S
            chosen_S = tl.where(position_S < length, position_S, -1)
            tl.store(topk + position_S, chosen_S.to(tl.int64), mask=position_S < num_selected)
    else:
        first_S = _ordered(scores, s_S, length)
        least = tl.full([], -2147483648, tl.int32)
        step = tl.full([], 1 << 30, tl.int32)
        for _ in range(16):
            a, b, c = least + step, least + 2 * step, least + 3 * step
            num_a, num_b, num_c = _count_3(first_S, a, b, c)
            for at in range(BLOCK, length, BLOCK):
                more_a, more_b, more_c = _count_3(_ordered(scores, at + s_S, length), a, b, c)
                num_a += more_a
                num_b += more_b
                num_c += more_c
            least = tl.where(num_a >= num_selected, a, least)
            least = tl.where(num_b >= num_selected, b, least)
            least = tl.where(num_c >= num_selected, c, least)
            step = step >> 2
        num_least = tl.sum((first_S >= least).to(tl.int32), 0)
        for at in range(BLOCK, length, BLOCK):
            num_least += tl.sum((_ordered(scores, at + s_S, length) >= least).to(tl.int32), 0)
        num_skipped = num_least - num_selected
        written = tl.zeros([], tl.int32)
        seen = tl.zeros([], tl.int32)
        for at in range(0, length, BLOCK):
            position_S = at + s_S
            key_S = _ordered(scores, position_S, length)
            is_chosen_S = (key_S >= least) & (position_S < length)
            if num_skipped > 0:
                is_equal_S = (key_S == least) & (position_S < length)
                nth_S = seen + tl.cumsum(is_equal_S.to(tl.int32), 0)
                is_chosen_S = is_chosen_S & ((key_S > least) | (nth_S > num_skipped))
                seen += tl.sum(is_equal_S.to(tl.int32), 0)
            place_S = written + tl.cumsum(is_chosen_S.to(tl.int32), 0) - 1
            tl.store(topk + place_S, position_S.to(tl.int64), mask=is_chosen_S)
            written += tl.sum(is_chosen_S.to(tl.int32), 0)
