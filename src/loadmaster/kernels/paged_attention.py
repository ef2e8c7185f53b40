"""Attention over a paged cache: the plain reference, and the launch of the kernels that read the pages where they lie.

The cache holds rows ``[heads, slots, D]``; slot ``page * P + offset`` holds one token. A batch has B contexts, each with some
new tokens at the end of what is cached; a query attends to the cached tokens of its context up to its own position.

The kernels take blocks of queries: the G query heads that share a head of keys are rows of one product, so keys are read
once for all of them. A context with few new tokens has one block, and its keys are divided over several programs (split KV),
whose results are merged; without that, one request with a long context would use few of a GPU's multiprocessors.
Sources: FlashAttention-2 (arXiv 2307.08691), Flash-Decoding (2023), PagedAttention (arXiv 2309.06180).

Shapes: T queries, N query heads, D head dim, B contexts, W pages of the widest context, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ROWS_OF_FEW = 64
"""A context whose new tokens make at most this many rows (tokens × G) has one block, and its keys are divided."""

ROWS_OF_MANY = 128
"""Rows of a block of a context with many new tokens, where the head dim and dtype leave room for them."""

PROGRAMS_PER_MULTIPROCESSOR = 4
MAX_SPLITS = 64


@dataclass(frozen=True, slots=True)
class PagedContexts:
    """The contexts of a batch. Tensors are int32, on the device of the cache.

    ``query_starts`` ``[B + 1]``: the first row of each context's new tokens, and T. ``lengths`` ``[B]``: cached tokens, the new
    ones included. ``page_table`` ``[B, W]``. ``num_tokens``: the new tokens of each context, on the host. ``max_length``: the
    longest of ``lengths``; None if the tensors are refilled later, for a CUDA graph.
    """

    query_starts: Tensor
    lengths: Tensor
    page_table: Tensor
    page_size: int
    num_tokens: tuple[int, ...]
    max_length: int | None
    _blocks: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    @property
    def only_single(self) -> bool:
        """Whether every context has one new token."""
        return max(self.num_tokens) == 1

    @property
    def capacity(self) -> int:
        """The cached tokens for which the page table has room."""
        return int(self.page_table.shape[1]) * self.page_size

    def blocks(self, few_tokens: int, block_tokens: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the blocks of contexts with up to ``few_tokens`` new tokens, and those of the others; None if there are none.

        Both ``[blocks, 2]``: a block's context, and its first token in it. The others have ``block_tokens`` tokens each; the
        last block of a context, which reads most keys, comes first. Computed once for all layers.
        """
        key = few_tokens, block_tokens
        if key not in self._blocks:
            few, many = [], []
            for context, count in enumerate(self.num_tokens):
                if count <= few_tokens:
                    few.append((context, 0))
                else:
                    many += [(context, first) for first in range(0, count, block_tokens)]
            many.sort(key=lambda block: -block[1])
            self._blocks[key] = self._on_device(few), self._on_device(many)
        return self._blocks[key]

    def _on_device(self, blocks: Sequence[tuple[int, int]]) -> Tensor | None:
        if not blocks:
            return None
        host = torch.from_numpy(np.array(blocks, np.int32))
        if self.lengths.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.lengths.device, non_blocking=True)


def paged_attention_reference(
    q_TND: Tensor,
    k_HSD: Tensor,
    v_HSD: Tensor,
    contexts: PagedContexts,
    *,
    scale: float,
    window: int | None = None,
    sinks_N: Tensor | None = None,
) -> Tensor:
    """Return ``[T, N, D]`` in the dtype of ``q_TND``, by the definition: one context at a time, scores in full.

    ``window``: only the last ``window`` tokens, the query's own included. ``sinks_N``: the softmax of each head has one more
    score, whose share goes to no value.
    """
    out_TND = torch.empty_like(q_TND)
    group = q_TND.shape[1] // len(k_HSD)
    starts, lengths = contexts.query_starts.tolist(), contexts.lengths.tolist()
    for b, length in enumerate(lengths):
        queries = slice(starts[b], starts[b + 1])
        positions_T = torch.arange(length - (starts[b + 1] - starts[b]), length, device=q_TND.device)
        keys_S = torch.arange(length, device=q_TND.device)
        slots_S = contexts.page_table[b].long()[keys_S // contexts.page_size] * contexts.page_size
        slots_S = slots_S + keys_S % contexts.page_size
        k_NSD = k_HSD[:, slots_S].repeat_interleave(group, dim=0)
        v_NSD = v_HSD[:, slots_S].repeat_interleave(group, dim=0)
        scores_NTS = torch.matmul(q_TND[queries].transpose(0, 1), k_NSD.transpose(1, 2)) * scale
        mask_TS = keys_S[None] <= positions_T[:, None]
        if window is not None:
            mask_TS &= keys_S[None] > positions_T[:, None] - window
        scores_NTS = scores_NTS.masked_fill(~mask_TS, float("-inf"))
        if sinks_N is not None:
            sinks_NT1 = sinks_N.to(scores_NTS.dtype)[:, None, None].expand(-1, scores_NTS.shape[1], 1)
            scores_NTS = torch.cat([scores_NTS, sinks_NT1], dim=-1)
        shares_NTS = scores_NTS.softmax(dim=-1)[..., :length]
        out_TND[queries] = torch.matmul(shares_NTS, v_NSD).transpose(0, 1)
    return out_TND


def paged_attention(
    q_TND: Tensor,
    k_HSD: Tensor,
    v_HSD: Tensor,
    contexts: PagedContexts,
    *,
    scale: float,
    window: int | None = None,
    sinks_N: Tensor | None = None,
) -> Tensor:
    """Return what `paged_attention_reference` defines, computed by kernels, with sums in float32.

    The last dim of all tensors is contiguous. Nothing waits for the device.
    """
    group = q_TND.shape[1] // len(k_HSD)
    out_TND = q_TND.new_empty(q_TND.shape)
    launch = _Launch(q_TND, k_HSD, v_HSD, out_TND, contexts, scale, window, sinks_N, group)
    if contexts.only_single:
        launch.few(None, len(contexts.num_tokens), 1)
        return out_TND
    few_tokens = max(1, ROWS_OF_FEW // group)
    few, many = contexts.blocks(few_tokens, launch.rows_of_many // group)
    if few is not None:
        launch.few(few, len(few), max(n for n in contexts.num_tokens if n <= few_tokens))
    if many is not None:
        launch.many(many)
    return out_TND


@dataclass(frozen=True, slots=True)
class _Launch:
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    contexts: PagedContexts
    scale: float
    window: int | None
    sinks: Tensor | None
    group: int

    @property
    def dim(self) -> int:
        """The head dim, padded to a power of two."""
        return max(16, power_of_two(self.q.shape[-1]))

    @property
    def row_bytes(self) -> int:
        return self.dim * self.q.element_size()

    @property
    def rows_of_many(self) -> int:
        return max(min(ROWS_OF_MANY, (1 << 15) // self.row_bytes), 16, power_of_two(self.group))

    def few(self, blocks: Tensor | None, num_blocks: int, num_tokens: int) -> None:
        """Compute contexts of at most ``num_tokens`` new tokens, one block each."""
        from loadmaster.kernels.paged_attention_triton import merge_splits

        rows = max(16, power_of_two(self.group * num_tokens))
        columns = max(16, min(64, (1 << 14) // self.row_bytes))
        num_splits = self._num_splits(num_blocks * len(self.k), columns)
        shape = (num_blocks, len(self.k), num_splits, rows)
        partial = self.q.new_empty((*shape, self.dim) if num_splits > 1 else (1,), dtype=torch.float32)
        lse = self.q.new_empty(shape if num_splits > 1 else (1,), dtype=torch.float32)
        self._attend(blocks, num_blocks, rows, columns, num_splits, partial, lse, num_warps=4, num_stages=2)
        if num_splits > 1:
            merge_splits[num_blocks, len(self.k), self.group * num_tokens](
                partial,
                lse,
                self.out,
                self.contexts.query_starts if blocks is None else blocks,
                self.contexts.query_starts,
                *self.out.stride()[:2],
                GROUP=self.group,
                HEAD_DIM=self.q.shape[-1],
                PADDED_DIM=self.dim,
                ROWS=rows,
                NUM_SPLITS=num_splits,
                HAS_BLOCKS=blocks is not None,
                num_warps=4,
            )

    def many(self, blocks: Tensor) -> None:
        """Compute blocks of contexts with more new tokens."""
        columns = max(16, min(64, (1 << 14) // self.row_bytes))
        unused = self.out.new_empty(1, dtype=torch.float32)
        self._attend(blocks, len(blocks), self.rows_of_many, columns, 1, unused, unused, num_warps=4, num_stages=3)

    def _num_splits(self, num_programs: int, columns: int) -> int:
        """Return over how many programs a block's keys are divided: a power of two, so that few kernels are compiled."""
        wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(self.q.device) // num_programs
        if self.contexts.max_length is not None:
            wanted = min(wanted, -(-self.contexts.max_length // columns))
        return 1 << max(0, min(wanted, MAX_SPLITS).bit_length() - 1)

    def _attend(
        self,
        blocks: Tensor | None,
        num_blocks: int,
        rows: int,
        columns: int,
        num_splits: int,
        partial: Tensor,
        lse: Tensor,
        *,
        num_warps: int,
        num_stages: int,
    ) -> None:
        from loadmaster.kernels.paged_attention_triton import attend_blocks

        contexts = self.contexts
        attend_blocks[num_blocks, len(self.k), num_splits](
            self.q,
            self.k,
            self.v,
            self.out,
            partial,
            lse,
            self.q if self.sinks is None else self.sinks,
            contexts.query_starts if blocks is None else blocks,
            contexts.query_starts,
            contexts.lengths,
            contexts.page_table,
            self.scale * math.log2(math.e),
            self.window or 0,
            *self.q.stride()[:2],
            *self.k.stride()[:2],
            *self.v.stride()[:2],
            *self.out.stride()[:2],
            contexts.page_table.stride(0),
            GROUP=self.group,
            HEAD_DIM=self.q.shape[-1],
            PADDED_DIM=self.dim,
            PAGE_SIZE=contexts.page_size,
            ROWS=rows,
            COLUMNS=columns,
            NUM_SPLITS=num_splits,
            HAS_BLOCKS=blocks is not None,
            HAS_WINDOW=self.window is not None,
            HAS_SINKS=self.sinks is not None,
            PRECISION="ieee" if self.q.dtype == torch.float32 else "tf32",
            num_warps=num_warps,
            num_stages=num_stages,
        )


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not less than a number.

    >>> [power_of_two(n) for n in (1, 3, 64, 80)]
    [1, 4, 64, 128]
    """
    return 1 << (number - 1).bit_length()


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has."""
    if device.type != "cuda":
        return 8  # Triton's interpreter: any number
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
