"""Products of a few rows with weights as they are stored, where reading the weight is all that takes time.

Tensor cores need a weight in shared memory, in another order and dtype. For one row that costs more than the products: here
each thread multiplies what it loads, 16 bytes at once, and sums are made in float32. Beside `block_product`, which takes more
rows. For a few tokens the experts of a layer are two kernels: gate and up with the activation, and down with the shares.

Shapes: T tokens, C choices a token, H hidden, I intermediate, E experts, N and K rows and columns of a weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loadmaster.kernels.block_product import BlockFactors
from loadmaster.kernels.paged_attention import multiprocessors, power_of_two

FEW_ROWS = 2
"""Up to so many rows of a product are computed here, each on its own."""

FEW_TOKENS = 16
"""Up to so many tokens choose their experts, and are computed by them, here."""

PROGRAMS_PER_MULTIPROCESSOR = 16
MAX_SPLITS = 8
COLUMNS = 4
STEP_BYTES = 1024
"""Columns of the output, and bytes of a row of the weight, that a program computes at once."""


def vector_product(x_TK: Tensor, weight_NK: Tensor, factors: BlockFactors | None) -> Tensor:
    """Return ``x @ weight.T`` ``[T, N]`` in the dtype of ``x``."""
    from loadmaster.kernels.block_product_triton import sum_splits

    sums = split_product(x_TK, weight_NK, factors, x_TK.dtype)
    if len(sums) == 1:
        return sums[0]
    out = x_TK.new_empty(sums.shape[1:])
    sum_splits[(-(-out.numel() // 512),)](sums, out, out.numel(), NUM_SPLITS=len(sums), BLOCK=512, num_warps=4)
    return out


def split_product(x_TK: Tensor, weight_NK: Tensor, factors: BlockFactors | None, dtype: torch.dtype) -> Tensor:
    """Return ``x @ weight.T`` as the sum of parts ``[S, T, N]``: one in ``dtype``, or several in float32."""
    from loadmaster.kernels.vector_product_triton import vector_product as kernel

    num_rows, (width, depth) = len(x_TK), weight_NK.shape
    blocks = _blocks(weight_NK, factors)
    num_programs = num_rows * -(-width // COLUMNS)
    wanted = min(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x_TK.device) // num_programs, depth // blocks["STEP"])
    num_splits = 1 << max(0, min(wanted, MAX_SPLITS).bit_length() - 1)
    dtype = dtype if num_splits == 1 else torch.float32
    sums_STN = torch.empty((num_splits, num_rows, width), dtype=dtype, device=x_TK.device)
    kernel[num_rows, -(-width // COLUMNS), num_splits](
        x_TK,
        weight_NK,
        *_factors(weight_NK, factors),
        sums_STN,
        width,
        depth,
        x_TK.stride(0),
        weight_NK.stride(0),
        0 if factors is None else factors.scale.stride(-2),
        **blocks,
        NUM_SPLITS=num_splits,
    )
    return sums_STN


def gated_experts(
    x_TH: Tensor,
    w13_E2IH: Tensor,
    factors13: BlockFactors | None,
    w2_EHI: Tensor,
    factors2: BlockFactors | None,
    experts_TC: Tensor,
    shares_TC: Tensor,
) -> Tensor:
    """Return for each token the sum of its experts' outputs, weighted, ``[T, H]``; for few tokens.

    ``w13`` has the rows of gate, then those of up. Experts that several tokens choose are read for each of them.
    """
    from loadmaster.kernels.vector_product_triton import down, gate_up

    (num_tokens, choices), (_, hidden, inner) = experts_TC.shape, w2_EHI.shape
    inner_CI = x_TH.new_empty((num_tokens * choices, inner))
    gate_up[num_tokens * choices, -(-inner // COLUMNS)](
        x_TH,
        w13_E2IH,
        *_factors(w13_E2IH, factors13),
        experts_TC,
        inner_CI,
        inner,
        x_TH.shape[1],
        x_TH.stride(0),
        *w13_E2IH.stride()[:2],
        *((0, 0) if factors13 is None else factors13.scale.stride()[:2]),
        CHOICES=choices,
        **_blocks(w13_E2IH, factors13),
    )
    out_TH = x_TH.new_empty((num_tokens, hidden))
    down[num_tokens, -(-hidden // COLUMNS)](
        inner_CI,
        w2_EHI,
        *_factors(w2_EHI, factors2),
        experts_TC,
        shares_TC,
        out_TH,
        hidden,
        inner,
        *w2_EHI.stride()[:2],
        *((0, 0) if factors2 is None else factors2.scale.stride()[:2]),
        CHOICES=choices,
        **_blocks(w2_EHI, factors2),
    )
    return out_TH


def route(
    x_TH: Tensor,
    weight_EH: Tensor,
    bias_E: Tensor | None,
    correction_E: Tensor | None,
    *,
    choices: int,
    is_sigmoid: bool,
    normalises: bool,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Return each token's experts, int64, and their shares, float32, both ``[T, C]``; for few tokens.

    The logits are products in float32. The correction affects the choice, never the shares; the bias affects both.
    """
    from loadmaster.kernels.vector_product_triton import choose_experts

    logits_STE = split_product(x_TH, weight_EH, None, torch.float32)
    num_splits, num_tokens, num_experts = logits_STE.shape
    experts_TC = torch.empty((num_tokens, choices), dtype=torch.int64, device=x_TH.device)
    shares_TC = torch.empty((num_tokens, choices), dtype=torch.float32, device=x_TH.device)
    choose_experts[(num_tokens,)](
        logits_STE,
        logits_STE if bias_E is None else bias_E,
        logits_STE if correction_E is None else correction_E,
        experts_TC,
        shares_TC,
        num_experts,
        scaling,
        IS_SIGMOID=is_sigmoid,
        HAS_BIAS=bias_E is not None,
        HAS_CORRECTION=correction_E is not None,
        NORMALISES=normalises,
        NUM_SPLITS=num_splits,
        CHOICES=choices,
        EXPERTS=power_of_two(num_experts),
        PADDED_CHOICES=power_of_two(choices),
        num_warps=1 if num_experts <= 256 else 4,
    )
    return experts_TC, shares_TC


def _factors(weight: Tensor, factors: BlockFactors | None) -> tuple[Tensor, Tensor]:
    return (weight, weight) if factors is None else (factors.scale, factors.row_of)


def _blocks(weight: Tensor, factors: BlockFactors | None) -> dict[str, Any]:
    """Return how a program divides its part of a weight."""
    depth = weight.shape[-1]
    lane = 16 // weight.element_size()
    step = max(lane, min(STEP_BYTES // weight.element_size(), power_of_two(depth)))
    assert factors is None or factors.block_columns % lane == 0, "factors of less than 16 columns"
    return {
        "HAS_FACTORS": factors is not None,
        "BLOCK_COLUMNS": 1 if factors is None else factors.block_columns,
        "COLUMNS": COLUMNS,
        "STEP": step,
        "LANE": lane,
        "IS_EVEN": depth % step == 0,
        "num_warps": 2,
    }
