"""The kernels of latent attention against plain forms in float64, on pages in random order among poisoned ones."""

from __future__ import annotations

import pytest
import torch

from loadmaster.kernels import latent_attention as kernels
from loadmaster.kernels.block_product import BlockFactors, row_map
from loadmaster.kernels.dequantise import dequantise_blocks
from loadmaster.layers.rotary import rotate
from tests.kernels.test_paged_attention_gpu import DEVICE, contexts_of

pytestmark = pytest.mark.gpu

LIMITS = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
BLOCK = 32


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected).norm() / expected.norm()).item()


def angles_of(num_tokens: int, pairs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(num_tokens, pairs)
    return angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)


def kv_b(
    num_heads: int, nope: int, value: int, rank: int, dtype: torch.dtype, *, is_fp8: bool
) -> tuple[kernels.LatentWeight, torch.Tensor, torch.Tensor]:
    """Return the weight, and its halves ``[N, nope, R]`` and ``[N, value, R]`` in float64."""
    rows = num_heads * (nope + value)
    if is_fp8:
        values = torch.randn(rows, rank).clamp(-3, 3).to(torch.float8_e4m3fn)
        scale = torch.rand(-(-rows // BLOCK), -(-rank // BLOCK)) + 0.5
        wide = dequantise_blocks(values, scale, (BLOCK, BLOCK)).double().to(DEVICE)
        row_of = row_map([((0, rows), (0, len(scale)), BLOCK, 0)], torch.device(DEVICE))
        weight = kernels.LatentWeight(values.to(DEVICE), BlockFactors(scale.to(DEVICE), row_of, BLOCK), nope, value)
    else:
        weight = kernels.LatentWeight(torch.randn(rows, rank).to(DEVICE, dtype), None, nope, value)
        wide = weight.values.double()
    keys, values = wide.view(num_heads, nope + value, rank).split((nope, value), dim=1)
    return weight, keys, values


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("q_rank", "kv_rank", "rope"), [(48, 80, 16), (2048, 512, 64)])
def test_the_norms_and_the_write_to_the_cache(
    q_rank: int, kv_rank: int, rope: int, interleaved: bool, dtype: torch.dtype
) -> None:
    num_tokens = 3
    qkv = torch.randn(num_tokens, q_rank + kv_rank + rope).to(DEVICE, dtype)
    q_norm, kv_norm = (1 + torch.randn(n).to(DEVICE, dtype) / 10 for n in (q_rank, kv_rank))
    cos, sin = angles_of(num_tokens, rope // 2, dtype)
    slots = torch.tensor([5, 0, 9], device=DEVICE)
    rows = torch.full((12, kv_rank + rope), float("nan"), dtype=dtype, device=DEVICE)
    out = kernels.norm_and_store(qkv, q_norm, kv_norm, cos, sin, slots, rows, 1e-5, interleaved=interleaved)
    q, kv, key = qkv.double().split((q_rank, kv_rank, rope), dim=-1)

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()

    assert distance(out, normed(q, q_norm)) < LIMITS[dtype]
    assert distance(rows[slots, :kv_rank], normed(kv, kv_norm)) < LIMITS[dtype]
    turned = rotate(key[:, None], cos.double(), sin.double(), interleaved=interleaved)[:, 0]
    assert distance(rows[slots, kv_rank:], turned) < LIMITS[dtype]
    assert rows[[i for i in range(12) if i not in (5, 0, 9)]].isnan().all()


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("is_fp8", [True, False])
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "nope", "value", "rank", "rope"),
    [(1, 3, 24, 40, 80, 16), (5, 2, 192, 256, 512, 64), (70, 1, 32, 16, 64, 16)],
)
def test_the_ways_into_the_latent_and_back(
    num_tokens: int, num_heads: int, nope: int, value: int, rank: int, rope: int, is_fp8: bool, dtype: torch.dtype
) -> None:
    weight, keys, values = kv_b(num_heads, nope, value, rank, dtype, is_fp8=is_fp8)
    cos, sin = angles_of(num_tokens, rope // 2, dtype)
    q = torch.randn(num_tokens, num_heads, nope + rope).to(DEVICE, dtype)
    out = kernels.absorb(q, cos, sin, weight, interleaved=True)
    assert distance(out[..., :rank], torch.einsum("tnj,njr->tnr", q[..., :nope].double(), keys)) < LIMITS[dtype]
    turned = rotate(q[..., nope:].double(), cos.double(), sin.double(), interleaved=True)
    assert distance(out[..., rank:], turned) < LIMITS[dtype]
    latent = torch.randn(num_tokens, num_heads, rank).to(DEVICE, dtype)
    expected = torch.einsum("tnr,nvr->tnv", latent.double(), values)
    assert distance(kernels.expand(latent, weight), expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("num_selected", [None, 7, 64, 100])
@pytest.mark.parametrize(
    ("num_heads", "rank", "rope", "page_size"), [(4, 80, 16, 1), (20, 64, 16, 16), (64, 512, 64, 16)]
)
def test_attention_to_all_tokens_or_to_those_that_are_selected(
    num_heads: int, rank: int, rope: int, page_size: int, num_selected: int | None, dtype: torch.dtype
) -> None:
    lengths = [1, 6, 7, 8, 63, 64, 65, 150, 700]
    paged, num_pages = contexts_of([1] * len(lengths), lengths, page_size)
    q = torch.randn(len(lengths), num_heads, rank + rope).to(DEVICE, dtype)
    rows = torch.randn(num_pages * page_size, rank + rope).to(DEVICE, dtype)
    rows[:page_size] = float("nan")
    topk = None
    if num_selected is not None:
        topk = torch.full((len(lengths), num_selected), -1)
        for row, length in zip(topk, lengths, strict=True):
            chosen = torch.randperm(length)[: num_selected - 2 * (length > 100)]  # the last are not given
            row[: len(chosen)] = chosen
        topk = topk.to(DEVICE)
    scale = (rank + rope) ** -0.5
    out = kernels.attend(q, rows, topk, paged, rank=rank, scale=scale)
    expected = kernels.attend_reference(q.double(), rows.double(), topk, paged, rank=rank, scale=scale)
    assert distance(out, expected) < LIMITS[dtype]
