"""The indexer's kernels against plain forms, and the choice among equal scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from loadmaster.kernels import index_selection as kernels
from loadmaster.layers.rotary import rotate
from tests.kernels.test_latent_attention_gpu import LIMITS, angles_of, distance
from tests.kernels.test_paged_attention_gpu import DEVICE, contexts_of

pytestmark = pytest.mark.gpu

LENGTHS = [1, 8, 9, 64, 65, 150, 700]


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("num_heads", "dim", "rope"), [(3, 24, 16), (32, 128, 64)])
def test_the_norm_and_the_write_to_the_cache(
    num_heads: int, dim: int, rope: int, interleaved: bool, dtype: torch.dtype
) -> None:
    num_tokens = 3
    q = torch.randn(num_tokens, num_heads, dim).to(DEVICE, dtype)
    k = torch.randn(num_tokens, dim + num_heads).to(DEVICE, dtype)[:, :dim]
    weight, bias = 1 + torch.randn(dim).to(DEVICE) / 10, torch.randn(dim).to(DEVICE)
    cos, sin = angles_of(num_tokens, rope // 2, dtype)
    slots = torch.tensor([5, 0, 9], device=DEVICE)
    rows = torch.full((12, dim), float("nan"), dtype=dtype, device=DEVICE)
    out = kernels.rotate_and_store(q, k, weight, bias, cos, sin, slots, rows, 1e-6, interleaved=interleaved)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        turned = rotate(x[..., :rope], cos.double(), sin.double(), interleaved=interleaved)
        return torch.cat([turned, x[..., rope:]], dim=-1)

    assert distance(out, rotated(q.double())) < LIMITS[dtype]
    normed = F.layer_norm(k.double(), (dim,), weight.double(), bias.double(), 1e-6)
    assert distance(rows[slots], rotated(normed[:, None])[:, 0]) < LIMITS[dtype]
    assert rows[[i for i in range(12) if i not in (5, 0, 9)]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_selected", [8, 64, 1000])
@pytest.mark.parametrize(("num_heads", "dim", "page_size"), [(4, 16, 1), (16, 64, 16)])
def test_the_best_tokens_are_selected_and_of_equal_ones_the_last(
    num_heads: int, dim: int, page_size: int, num_selected: int, dtype: torch.dtype
) -> None:
    paged, num_pages = contexts_of([1] * len(LENGTHS), LENGTHS, page_size)
    # small whole numbers, and powers of two as scales: scores are exact in every dtype; many are equal, most of them zero
    q = torch.randint(-2, 3, (len(LENGTHS), num_heads, dim)).to(DEVICE, dtype) * (
        torch.rand(len(LENGTHS), num_heads, 1) < 0.3
    ).to(DEVICE)
    q[..., 2:] = 0
    weights = torch.randint(-2, 3, (len(LENGTHS), num_heads + 3)).to(DEVICE, dtype)[:, :num_heads]
    rows = torch.randint(-1, 2, (num_pages * page_size, dim)).to(DEVICE, dtype)
    rows[:page_size] = float("nan")
    topk = kernels.select(q, weights, rows, paged, num_selected).tolist()
    wide = q.double(), weights.double(), rows.double()
    expected = kernels.select_reference(*wide, paged, min(num_selected, paged.capacity))
    for found, wanted in zip(topk, expected, strict=True):
        assert found == sorted(wanted) + [-1] * (len(found) - len(wanted))


def test_long_contexts_are_compared_in_parts() -> None:
    length = 3 * kernels.MAX_BLOCK + 5
    paged, num_pages = contexts_of([1], [length], 64)
    q, weights = torch.randn(1, 4, 32).to(DEVICE), torch.randn(1, 4).abs().to(DEVICE)
    rows = torch.randn(num_pages * 64, 32).to(DEVICE)
    found = set(kernels.select(q, weights, rows, paged, 500)[0].tolist())
    (expected,) = kernels.select_reference(q.double(), weights.double(), rows.double(), paged, 500)
    assert len(found & set(expected)) >= 498  # near-ties at the end
