"""Selection of the tokens that sparse attention attends to, for single tokens: kernels with fixed shapes, and a reference.

Each context of the batch has one new token. `score` gives every cached token of a context a score, read from the pages where
they lie; `select` finds the best. Of equal scores the later position comes first; zeros come before negative scores and after
positive ones (see `loadmaster.layers.indexer`). Nothing waits for the device, and shapes depend on ``capacity`` alone, so a
CUDA graph can repeat it.

Shapes: T tokens, N heads of the indexer, D elements of a head, S slots of the cache, W positions for which tables have room.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loadmaster.kernels.paged_attention import PagedContexts, power_of_two

MAX_BLOCK = 1 << 13
"""Scores that a program keeps in registers; those of a longer context are read again each time they are compared."""


def rotate_and_store(
    q_TND: Tensor,
    k_TD: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    slots_T: Tensor,
    rows_SD: Tensor,
    eps: float,
    *,
    interleaved: bool,
) -> Tensor:
    """Return the rotated queries, contiguous; write each token's key, normed and rotated, to its slot of the cache.

    The first ``2 * P`` elements of a head are rotated. The heads of ``q_TND`` are adjacent.
    """
    from loadmaster.kernels.index_selection_triton import rotate_and_store as kernel

    num_tokens, num_heads, dim = q_TND.shape
    num_pairs = cos_TP.shape[1]
    out_TND = torch.empty((num_tokens, num_heads, dim), dtype=q_TND.dtype, device=q_TND.device)
    kernel[num_tokens, num_heads + 1](
        q_TND,
        k_TD,
        norm_weight,
        norm_bias,
        cos_TP,
        sin_TP,
        slots_T,
        out_TND,
        rows_SD,
        q_TND.stride(0),
        k_TD.stride(0),
        cos_TP.stride(0),
        rows_SD.stride(0),
        num_heads,
        dim,
        num_pairs,
        eps,
        IS_INTERLEAVED=interleaved,
        BLOCK=power_of_two(dim),
        PAIRS=power_of_two(num_pairs),
        num_warps=1,
    )
    return out_TND


def select_reference(
    q_TND: Tensor, weights_TN: Tensor, rows_SD: Tensor, contexts: PagedContexts, num_selected: int
) -> list[list[int]]:
    """Return the selected positions of each token, best first, by the definition."""
    selected = []
    for token, length in enumerate(contexts.lengths.tolist()):
        positions = torch.arange(length, device=q_TND.device)
        slots = contexts.page_table[token].long()[positions // contexts.page_size] * contexts.page_size
        k_SD = rows_SD[slots + positions % contexts.page_size]
        scores_NS = (q_TND[token] @ k_SD.T * q_TND.shape[2] ** -0.5).relu()
        scores = (weights_TN[token] * q_TND.shape[1] ** -0.5 @ scores_NS).tolist()
        selected.append(sorted(range(length), key=lambda i, scores=scores: (-scores[i], -i))[:num_selected])  # type: ignore[misc]
    return selected


def select(q_TND: Tensor, weights_TN: Tensor, rows_SD: Tensor, contexts: PagedContexts, num_selected: int) -> Tensor:
    """Return the selected positions ``[T, K]`` in order, -1 after the last one; K is ``num_selected`` or W, if that is less."""
    from loadmaster.kernels.index_selection_triton import select as kernel

    num_tokens, capacity = len(q_TND), contexts.capacity
    num_selected = min(num_selected, capacity)
    scores_TW = q_TND.new_empty((num_tokens, capacity if capacity > num_selected else 1), dtype=torch.float32)
    if capacity > num_selected:
        _score(q_TND, weights_TN, rows_SD, contexts, scores_TW)
    topk_TK = torch.empty((num_tokens, num_selected), dtype=torch.int64, device=q_TND.device)
    block = min(MAX_BLOCK, power_of_two(capacity))
    kernel[(num_tokens,)](
        scores_TW,
        contexts.lengths,
        topk_TK,
        scores_TW.shape[1],
        num_selected,
        BLOCK=block,
        num_warps=min(32, max(1, block // 256)),
    )
    return topk_TK


def _score(q_TND: Tensor, weights_TN: Tensor, rows_SD: Tensor, contexts: PagedContexts, scores_TW: Tensor) -> None:
    """Write the scores of all cached tokens."""
    from loadmaster.kernels.index_selection_triton import score as kernel

    num_tokens, num_heads, dim = q_TND.shape
    is_wide = q_TND.dtype == torch.float32
    columns = 32 if is_wide else 64
    kernel[num_tokens, -(-contexts.capacity // columns)](
        q_TND,
        weights_TN,
        rows_SD,
        contexts.lengths,
        contexts.page_table,
        scores_TW,
        dim**-0.5,
        num_heads**-0.5,
        weights_TN.stride(0),
        rows_SD.stride(0),
        contexts.page_table.stride(0),
        scores_TW.shape[1],
        num_heads,
        dim,
        PAGE_SIZE=contexts.page_size,
        HEADS=max(16, power_of_two(num_heads)),
        BLOCK=max(16, power_of_two(dim)),
        COLUMNS=columns,
        PRECISION="ieee" if is_wide else "tf32",
        num_warps=4,
    )
