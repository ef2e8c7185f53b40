"""The small parts of a layer on a GPU, one pass over memory each: norm, rotary embedding into the cache, gated activation.

Beside `loadmaster.layers.norm`, `rotary` and `mlp`, whose plain forms are their references. A batch of few tokens waits more
for the launches of kernels than for memory, and each of these replaces up to fifteen.

Shapes: T tokens, N query heads, H heads of keys, D head dim, S slots of the cache, I intermediate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loadmaster.architectures.model import NormKind
from loadmaster.kernels.paged_attention import power_of_two

HEADS_OF_A_PROGRAM = 8


def rms_norm(x: Tensor, weight: Tensor, eps: float, kind: NormKind = "rms") -> Tensor:
    """Return ``x / rms(x) * weight`` over the last dim, contiguous. ``x`` has two or three dims, the last contiguous."""
    from loadmaster.kernels.fused_triton import rms_norm as kernel

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.unsqueeze(1) if x.dim() == 2 else x
    width = rows.shape[2]
    kernel[rows.shape[0], rows.shape[1]](
        rows,
        weight,
        out,
        *rows.stride()[:2],
        width,
        eps,
        BLOCK=power_of_two(width),
        KIND=kind,
        num_warps=8 if width > 2048 else 4 if width > 512 else 1,
    )
    return out


def rotate_and_store(
    q_TND: Tensor, k_THD: Tensor, v_THD: Tensor, cos: Tensor, sin: Tensor, slots_T: Tensor, k_HSD: Tensor, v_HSD: Tensor
) -> Tensor:
    """Return the rotated queries; write the rotated keys, and the values, to their slots of the cache.

    ``cos`` and ``sin`` ``[T, R]`` rotate element ``i`` and ``i + R`` of each head, for ``i < R``; the rest of a head stays.
    """
    from loadmaster.kernels.fused_triton import rotate_and_store as kernel

    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    num_tokens, num_heads, dim = q_TND.shape
    num_kv_heads = k_THD.shape[1]
    kernel[num_tokens, -(-(num_heads + 2 * num_kv_heads) // HEADS_OF_A_PROGRAM)](
        q_TND,
        k_THD,
        v_THD,
        cos,
        sin,
        slots_T,
        out_TND,
        k_HSD,
        v_HSD,
        *q_TND.stride()[:2],
        *k_THD.stride()[:2],
        *v_THD.stride()[:2],
        *out_TND.stride()[:2],
        *k_HSD.stride()[:2],
        *v_HSD.stride()[:2],
        cos.stride(0),
        num_heads,
        num_kv_heads,
        dim,
        cos.shape[1],
        HEADS=HEADS_OF_A_PROGRAM,
        BLOCK=power_of_two(dim),
        num_warps=4,
    )
    return out_TND


def silu_and_multiply(gate_up_T2I: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` ``[T, I]``; the gate's columns come first."""
    from loadmaster.kernels.fused_triton import silu_and_multiply as kernel

    num_tokens, width = gate_up_T2I.shape[0], gate_up_T2I.shape[1] // 2
    out_TI = gate_up_T2I.new_empty((num_tokens, width))
    block = min(1024, power_of_two(width))
    kernel[num_tokens, -(-width // block)](gate_up_T2I, out_TI, gate_up_T2I.stride(0), width, BLOCK=block, num_warps=4)
    return out_TI
