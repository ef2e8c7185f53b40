"""Latent attention (MLA) of single tokens: the launch of kernels with fixed shapes, and the plain reference of attending.

Each context of the batch has one new token. Queries go into the latent (`absorb`), attend there to rows of the cache in their
pages (`attend`), and come back (`expand`); ``kv_b`` is read as it is stored, and no token is expanded. The heads of a token
share all rows, so a block of heads is one product; the rows are divided over programs (split KV), whose results are merged.
Nothing waits for the device, and nothing but ``capacity`` depends on lengths, so a CUDA graph can repeat it.
Sources: DeepSeek-V2 (arXiv 2405.04434) for the absorbed form; Flash-Decoding (2023).

Shapes: T tokens, N heads, J and V elements of a head's keys (without the rotary part) and values, R elements of the latent,
D of the rotary part, P pairs of it, S slots of the cache, K selected tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loadmaster.kernels.block_product import BlockFactors
from loadmaster.kernels.paged_attention import PagedContexts, multiprocessors, power_of_two

HEADS_OF_A_PROGRAM = 16
PROGRAMS_PER_MULTIPROCESSOR = 2
MAX_SPLITS = 64


@dataclass(frozen=True, slots=True)
class LatentWeight:
    """``kv_b`` ``[N * (J + V), R]`` as it is stored, with its factors if it has some: J rows of keys, V of values a head."""

    values: Tensor
    factors: BlockFactors | None
    nope: int
    value: int


def norm_and_store(
    qkv_TQ: Tensor,
    q_norm: Tensor,
    kv_norm: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    slots_T: Tensor,
    rows_SR: Tensor,
    eps: float,
    *,
    interleaved: bool,
) -> Tensor:
    """Return the normed latents of the queries; write each token's normed latent and rotated key to its slot of the cache.

    ``qkv_TQ`` has a token's query latent, its latent, and its key's rotary part.
    """
    from loadmaster.kernels.latent_attention_triton import norm_and_store as kernel

    q_rank, kv_rank, num_pairs = len(q_norm), len(kv_norm), cos_TP.shape[1]
    q_TL = qkv_TQ.new_empty((len(qkv_TQ), q_rank))
    kernel[len(qkv_TQ), 2](
        qkv_TQ,
        q_norm,
        kv_norm,
        cos_TP,
        sin_TP,
        slots_T,
        q_TL,
        rows_SR,
        qkv_TQ.stride(0),
        cos_TP.stride(0),
        rows_SR.stride(0),
        q_rank,
        kv_rank,
        num_pairs,
        eps,
        IS_INTERLEAVED=interleaved,
        Q_BLOCK=power_of_two(q_rank),
        KV_BLOCK=power_of_two(kv_rank),
        PAIRS=power_of_two(num_pairs),
        num_warps=4,
    )
    return q_TL


def absorb(q_TNX: Tensor, cos_TP: Tensor, sin_TP: Tensor, weight: LatentWeight, *, interleaved: bool) -> Tensor:
    """Return the queries in the latent, followed by their rotated part, ``[T, N, R + D]``; ``q_TNX`` has J + D elements."""
    from loadmaster.kernels.latent_attention_triton import absorb as kernel

    num_tokens, num_heads, _ = q_TNX.shape
    rank, num_pairs = weight.values.shape[1], cos_TP.shape[1]
    q_TNR = q_TNX.new_empty((num_tokens, num_heads, rank + 2 * num_pairs))
    columns = _step(weight, 64)
    tokens = _tokens(num_tokens)
    kernel[num_heads, -(-rank // columns), -(-num_tokens // tokens)](
        q_TNX,
        cos_TP,
        sin_TP,
        *_weight(weight),
        q_TNR,
        num_tokens,
        *q_TNX.stride()[:2],
        cos_TP.stride(0),
        *_pitches(weight),
        *q_TNR.stride()[:2],
        **_shape(weight),
        IS_INTERLEAVED=interleaved,
        NUM_PAIRS=num_pairs,
        TOKENS=tokens,
        COLUMNS=columns,
        STEP=max(16, min(64, power_of_two(weight.nope))),
        PAIRS=power_of_two(num_pairs),
        PRECISION=_precision(q_TNX),
        num_warps=4,
    )
    return q_TNR


def attend_reference(
    q_TNR: Tensor, rows_SR: Tensor, topk_TK: Tensor | None, contexts: PagedContexts, *, rank: int, scale: float
) -> Tensor:
    """Return the latents ``[T, N, R]`` that the queries attend to, by the definition: one token at a time.

    ``topk_TK`` are the positions that a context longer than K attends to (-1 for none); others attend to all.
    """
    out_TNR = []
    for token, length in enumerate(contexts.lengths.tolist()):
        positions = torch.arange(length, device=q_TNR.device)
        if topk_TK is not None and length > topk_TK.shape[1]:
            positions = topk_TK[token][topk_TK[token] >= 0]
        slots = contexts.page_table[token].long()[positions // contexts.page_size] * contexts.page_size
        rows_CR = rows_SR[slots + positions % contexts.page_size]
        out_TNR.append((q_TNR[token] @ rows_CR.T * scale).softmax(dim=-1) @ rows_CR[:, :rank])
    return torch.stack(out_TNR)


def attend(
    q_TNR: Tensor, rows_SR: Tensor, topk_TK: Tensor | None, contexts: PagedContexts, *, rank: int, scale: float
) -> Tensor:
    """Return what `attend_reference` defines, computed by kernels, with sums in float32."""
    from loadmaster.kernels.latent_attention_triton import attend as kernel
    from loadmaster.kernels.latent_attention_triton import merge

    num_tokens, num_heads, width = q_TNR.shape
    heads = min(HEADS_OF_A_PROGRAM, power_of_two(num_heads))
    num_blocks = -(-num_heads // heads)
    columns = 32 if q_TNR.element_size() == 2 else 16
    most = contexts.capacity if topk_TK is None else min(contexts.capacity, topk_TK.shape[1])
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(q_TNR.device) // (num_tokens * num_blocks)
    num_splits = 1 << max(0, min(wanted, -(-most // columns), MAX_SPLITS).bit_length() - 1)
    padded = max(16, power_of_two(rank))
    partial = q_TNR.new_empty((num_tokens, num_heads, num_splits, padded), dtype=torch.float32)
    lse = q_TNR.new_empty((num_tokens, num_heads, num_splits), dtype=torch.float32)
    kernel[num_tokens, num_blocks, num_splits](
        q_TNR,
        rows_SR,
        contexts.lengths if topk_TK is None else topk_TK,
        contexts.lengths,
        contexts.page_table,
        partial,
        lse,
        scale * math.log2(math.e),
        *q_TNR.stride()[:2],
        rows_SR.stride(0),
        contexts.page_table.stride(0),
        0 if topk_TK is None else topk_TK.shape[1],
        0 if topk_TK is None else topk_TK.stride(0),
        num_heads,
        RANK=rank,
        ROPE=width - rank,
        PADDED_RANK=padded,
        PADDED_ROPE=max(16, power_of_two(width - rank)),
        PAGE_SIZE=contexts.page_size,
        HEADS=max(16, heads),
        COLUMNS=columns,
        NUM_SPLITS=num_splits,
        HAS_SELECTION=topk_TK is not None,
        PRECISION=_precision(q_TNR),
        num_warps=4,
        num_stages=2,
    )
    out_TNR = q_TNR.new_empty((num_tokens, num_heads, rank))
    block = min(128, padded)
    merge[num_tokens, num_heads, -(-rank // block)](
        partial,
        lse,
        out_TNR,
        num_heads,
        RANK=rank,
        PADDED_RANK=padded,
        COLUMNS=block,
        NUM_SPLITS=num_splits,
        num_warps=4,
    )
    return out_TNR


def expand(latent_TNR: Tensor, weight: LatentWeight) -> Tensor:
    """Return the heads' outputs ``[T, N, V]``; ``latent_TNR`` is contiguous."""
    from loadmaster.kernels.latent_attention_triton import expand as kernel

    num_tokens, num_heads, _ = latent_TNR.shape
    out_TNV = latent_TNR.new_empty((num_tokens, num_heads, weight.value))
    tokens, columns = _tokens(num_tokens), max(16, min(64, power_of_two(weight.value)))
    kernel[num_heads, -(-weight.value // columns), -(-num_tokens // tokens)](
        latent_TNR,
        *_weight(weight),
        out_TNV,
        num_tokens,
        num_heads,
        *_pitches(weight),
        **_shape(weight),
        TOKENS=tokens,
        COLUMNS=columns,
        STEP=_step(weight, 128 if latent_TNR.element_size() == 2 else 64),
        PRECISION=_precision(latent_TNR),
        num_warps=4,
    )
    return out_TNV


def _tokens(num_tokens: int) -> int:
    return min(64, max(16, power_of_two(num_tokens)))


def _step(weight: LatentWeight, most: int) -> int:
    """Return how many columns of the weight are taken at once: they have one factor in each row."""
    step = max(16, min(most, power_of_two(weight.values.shape[1])))
    while weight.factors is not None and weight.factors.block_columns % step:
        step //= 2
    assert step >= 16, "factors of less than 16 columns"
    return step


def _weight(weight: LatentWeight) -> tuple[Tensor, Tensor, Tensor]:
    factors = weight.factors
    return (weight.values,) * 3 if factors is None else (weight.values, factors.scale, factors.row_of)


def _pitches(weight: LatentWeight) -> tuple[int, int]:
    return weight.values.stride(0), 0 if weight.factors is None else weight.factors.scale.stride(0)


def _shape(weight: LatentWeight) -> dict[str, Any]:
    return {
        "HAS_FACTORS": weight.factors is not None,
        "BLOCK_COLUMNS": 1 if weight.factors is None else weight.factors.block_columns,
        "NOPE": weight.nope,
        "VALUE": weight.value,
        "RANK": weight.values.shape[1],
    }


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"
