"""The kernels of `loadmaster.kernels.fused`. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, weight, out, x_outer, x_inner, width, eps, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """Normalise one row; ``out`` is contiguous."""
    outer, inner = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    is_in = at < width
    value = tl.load(x + outer * x_outer + inner * x_inner + at, mask=is_in, other=0.0).to(tl.float32)
    factor = tl.load(weight + at, mask=is_in, other=0.0)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    dtype = out.dtype.element_ty
    if KIND == "rms":
        result = factor.to(dtype).to(tl.float32) * normed.to(dtype).to(tl.float32)
    elif KIND == "rms_wide":
        result = factor.to(tl.float32) * normed
    else:
        result = (1.0 + factor.to(tl.float32)) * normed
    tl.store(out + (outer * tl.num_programs(1) + inner) * width + at, result.to(dtype), mask=is_in)


@triton.jit(do_not_specialize=["slots"], do_not_specialize_on_alignment=["slots"])  # its alignment varies
def rotate_and_store(
    q, k, v, cos, sin, slots, q_out, k_cache, v_cache,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    k_cache_head, k_cache_slot, v_cache_head, v_cache_slot, angle_token,
    num_heads, num_kv_heads, dim, num_pairs, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Process some heads of one token: queries first, then keys, then values."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    is_in = d < dim
    is_q = (head < num_heads) & is_in
    is_k = (head >= num_heads) & (head < num_heads + num_kv_heads) & is_in
    is_v = (head >= num_heads + num_kv_heads) & (head < num_heads + 2 * num_kv_heads) & is_in
    q_row = q + token * q_token + head * q_head
    k_row = k + token * k_token + (head - num_heads) * k_head
    v_row = v + token * v_token + (head - num_heads - num_kv_heads) * v_head

    is_first, is_rotated = d < num_pairs, d < 2 * num_pairs
    other_d = tl.where(is_first, d + num_pairs, d - num_pairs)
    angle = tl.where(is_first, d, d - num_pairs)
    c = tl.load(cos + token * angle_token + angle, mask=is_rotated, other=1.0).to(tl.float32)
    s = tl.load(sin + token * angle_token + angle, mask=is_rotated, other=0.0).to(tl.float32)
    s = tl.where(is_first, -s, s)

    slot = tl.load(slots + token)
    q_1 = tl.load(q_row + d, mask=is_q, other=0.0).to(tl.float32)
    q_2 = tl.load(q_row + other_d, mask=is_q & is_rotated, other=0.0).to(tl.float32)
    tl.store(q_out + token * out_token + head * out_head + d, (q_1 * c + q_2 * s).to(q_out.dtype.element_ty), mask=is_q)
    k_1 = tl.load(k_row + d, mask=is_k, other=0.0).to(tl.float32)
    k_2 = tl.load(k_row + other_d, mask=is_k & is_rotated, other=0.0).to(tl.float32)
    k_at = k_cache + (head - num_heads).to(tl.int64) * k_cache_head + slot * k_cache_slot
    tl.store(k_at + d, (k_1 * c + k_2 * s).to(k_cache.dtype.element_ty), mask=is_k)
    v_at = v_cache + (head - num_heads - num_kv_heads).to(tl.int64) * v_cache_head + slot * v_cache_slot
    tl.store(v_at + d, tl.load(v_row + d, mask=is_v, other=0.0).to(v_cache.dtype.element_ty), mask=is_v)


@triton.jit
def silu_and_multiply(gate_up, out, row_pitch, width, BLOCK: tl.constexpr):
    """Compute one part of one row; ``out`` is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < width
    gate = tl.load(gate_up + row * row_pitch + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_pitch + width + at, mask=is_in, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + at, (activated * up).to(out.dtype.element_ty), mask=is_in)
