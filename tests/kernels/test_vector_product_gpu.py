"""Products of few rows, experts and their choice, against plain forms in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from loadmaster.kernels.block_product import BlockFactors
from loadmaster.kernels.vector_product import gated_experts, route, vector_product
from tests.kernels.test_block_product_gpu import DEVICE, LIMITS, distance, stored

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(
    ("num_rows", "parts", "depth"), [(1, (64,), 64), (2, (70, 33), 2100), (1, (256, 40), 4096), (2, (8,), 40)]
)
def test_products(num_rows: int, parts: tuple[int, ...], depth: int, dtype: torch.dtype, is_fp8: bool) -> None:
    weight, factors, wide = stored(1, parts, depth)
    one = BlockFactors(factors.scale[0], factors.row_of, factors.block_columns)
    if not is_fp8:
        weight = wide.to(dtype)
        wide = weight.double()
    x = torch.randn(num_rows, depth + 8).to(DEVICE, dtype)[:, :depth]
    out = vector_product(x, weight[0], one if is_fp8 else None)
    assert distance(out, x.double() @ wide[0].T) < LIMITS[dtype]


@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "choices", "hidden", "inner"),
    [(1, 8, 2, 100, 70), (3, 4, 3, 320, 96), (8, 16, 5, 1024, 64)],
)
def test_the_experts_of_each_token(
    num_tokens: int, num_experts: int, choices: int, hidden: int, inner: int, dtype: torch.dtype, is_fp8: bool
) -> None:
    w13, factors13, wide13 = stored(num_experts, (inner, inner), hidden)
    w2, factors2, wide2 = stored(num_experts, (hidden,), inner)
    wide13, wide2 = wide13 / hidden, wide2 / inner
    factors13 = BlockFactors(factors13.scale / hidden, factors13.row_of, factors13.block_columns)
    factors2 = BlockFactors(factors2.scale / inner, factors2.row_of, factors2.block_columns)
    if not is_fp8:
        w13, w2 = wide13.to(dtype), wide2.to(dtype)
        wide13, wide2 = w13.double(), w2.double()
    x = torch.randn(num_tokens, hidden).to(DEVICE, dtype)
    shares, experts = (t.to(DEVICE) for t in torch.rand(num_tokens, num_experts).topk(choices))
    both = (factors13, factors2) if is_fp8 else (None, None)
    out = gated_experts(x, w13, both[0], w2, both[1], experts, shares)
    gate, up = torch.einsum("th,tcih->tci", x.double(), wide13[experts]).chunk(2, dim=-1)
    expected = torch.einsum("tci,tchi,tc->th", F.silu(gate) * up, wide2[experts], shares.double())
    assert distance(out, expected) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("is_sigmoid", [False, True])
@pytest.mark.parametrize("is_corrected", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "choices", "hidden"), [(1, 6, 2, 100), (3, 256, 8, 320), (8, 16, 5, 6144)]
)
def test_the_choice_of_experts(
    num_tokens: int,
    num_experts: int,
    choices: int,
    hidden: int,
    is_corrected: bool,
    is_sigmoid: bool,
    dtype: torch.dtype,
) -> None:
    x, weight = torch.randn(num_tokens, hidden).to(DEVICE, dtype), torch.randn(num_experts, hidden).to(DEVICE, dtype)
    weight /= hidden**0.5
    bias = torch.randn(num_experts).to(DEVICE) if is_corrected else None
    correction = torch.randn(num_experts).to(DEVICE) if is_corrected else None
    experts, shares = route(
        x, weight, bias, correction, choices=choices, is_sigmoid=is_sigmoid, normalises=is_sigmoid, scaling=2.5
    )
    logits = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
    chosen = (scores if correction is None else scores + correction.double()).topk(choices).indices
    assert torch.equal(experts.sort().values, chosen.sort().values)
    expected = scores.gather(1, experts)
    if is_sigmoid:
        expected = expected / expected.sum(dim=-1, keepdim=True)
    assert distance(shares, 2.5 * expected) < 1e-5


def test_of_equal_experts_the_first_is_chosen() -> None:
    weight = torch.zeros(32, 64, device=DEVICE)
    experts, _ = route(
        torch.ones(1, 64, device=DEVICE), weight, None, None, choices=4, is_sigmoid=True, normalises=True, scaling=1.0
    )
    assert experts.tolist() == [[0, 1, 2, 3]]
