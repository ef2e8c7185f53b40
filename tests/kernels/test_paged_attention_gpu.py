"""The attention kernels against the plain reference in float64, on pages in random order among poisoned ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from loadmaster.kernels.paged_attention import PagedContexts, paged_attention, paged_attention_reference

pytestmark = pytest.mark.gpu

DEVICE = "cuda"

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""The most of ||out - reference|| / ||reference||."""


def contexts_of(num_tokens: Sequence[int], lengths: Sequence[int], page_size: int) -> tuple[PagedContexts, int]:
    """Return contexts whose pages are in random order, and the number of pages; page 0 belongs to nobody."""
    counts = [-(-length // page_size) for length in lengths]
    pages = torch.randperm(sum(counts)) + 1
    table = torch.zeros(len(lengths), max(counts) + 3, dtype=torch.int32)
    for row, own in zip(table, pages.split(counts), strict=True):
        row[: len(own)] = own
    starts = torch.tensor(np.cumsum([0, *num_tokens]), dtype=torch.int32)
    paged = PagedContexts(
        starts.to(DEVICE),
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        table.to(DEVICE)[:, : max(counts) + 1],
        page_size,
        tuple(num_tokens),
        max(lengths),
    )
    return paged, sum(counts) + 1


def check(
    num_tokens: Sequence[int],
    lengths: Sequence[int],
    *,
    group: int = 4,
    num_kv_heads: int = 2,
    dim: int = 64,
    page_size: int = 16,
    window: int | None = None,
    sinks: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    paged, num_pages = contexts_of(num_tokens, lengths, page_size)
    # as in a layer: parts of one projection, so rows are not contiguous
    qkv = torch.randn(sum(num_tokens), (group + 2) * num_kv_heads, dim).to(DEVICE, dtype)
    q = qkv[:, : group * num_kv_heads]
    k, v = torch.randn(2, num_kv_heads, num_pages * page_size, dim).to(DEVICE, dtype)
    k[:, :page_size] = v[:, :page_size] = float("nan")
    sinks_N = torch.randn(group * num_kv_heads).to(DEVICE, dtype) if sinks else None
    scale = dim**-0.5
    out = paged_attention(q, k, v, paged, scale=scale, window=window, sinks_N=sinks_N)
    wide = (x.double() for x in (q, k, v))
    wide_sinks = None if sinks_N is None else sinks_N.double()
    expected = paged_attention_reference(*wide, paged, scale=scale, window=window, sinks_N=wide_sinks)
    error = ((out.double() - expected).norm() / expected.norm()).item()
    assert error < LIMITS[dtype], error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("group", "page_size"), [(1, 16), (2, 1), (3, 64), (4, 16), (4, 24), (5, 16), (6, 8), (7, 1), (8, 64)]
)
def test_single_tokens_of_contexts_of_any_length(group: int, page_size: int, dtype: torch.dtype) -> None:
    lengths = [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 1000]
    check([1] * len(lengths), lengths, group=group, page_size=page_size, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("group", "page_size"), [(1, 1), (3, 24), (4, 16), (8, 64)])
def test_chunks_of_prompts_beside_single_tokens_and_drafts(group: int, page_size: int, dtype: torch.dtype) -> None:
    num_tokens = [1, 2, 16, 65, 130, 1, 5, 128, 300]
    before = [0, 7, 48, 0, 33, 700, 128, 64, 1]
    lengths = [n + b for n, b in zip(num_tokens, before, strict=True)]
    check(num_tokens, lengths, group=group, page_size=page_size, dtype=dtype)


@pytest.mark.parametrize("window", [1, 5, 64, 100, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows(window: int, dtype: torch.dtype) -> None:
    check([1, 1, 1, 1], [1, 64, 65, 1500], window=window, dtype=dtype)
    check([1, 200, 3, 150], [99, 200, 103, 700], window=window, dtype=dtype)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks(window: int | None, dtype: torch.dtype) -> None:
    check([1, 1, 1], [1, 33, 900], window=window, sinks=True, dtype=dtype)
    check([1, 200, 3], [99, 230, 103], window=window, sinks=True, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 80, 96, 128, 256])
def test_head_dims(dim: int, dtype: torch.dtype) -> None:
    check([1, 1], [50, 300], dim=dim, group=2, dtype=dtype)
    check([1, 150, 4], [50, 190, 300], dim=dim, group=2, dtype=dtype)


def test_one_head_for_all_queries() -> None:
    check([1, 1, 90], [700, 3, 120], group=16, num_kv_heads=1)


def test_many_contexts_are_not_divided() -> None:
    check([1] * 300, [1 + 7 * (i % 40) for i in range(300)], num_kv_heads=8, dtype=torch.bfloat16)


def test_a_long_prompt_and_a_long_context() -> None:
    check([2100, 1], [2100, 9000], num_kv_heads=2, dim=128, dtype=torch.bfloat16)
