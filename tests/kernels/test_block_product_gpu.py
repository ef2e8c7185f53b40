"""Products with stored weights against products in float64 with the dequantised ones."""

from __future__ import annotations

import pytest
import torch

from loadmaster.kernels.block_product import BlockFactors, group_choices, grouped_product, product, row_map
from loadmaster.kernels.dequantise import dequantise_blocks

pytestmark = pytest.mark.gpu

DEVICE = "cuda"

LIMITS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
BLOCK = 32
"""Rows and columns that share a factor; two parts are fused, whose last blocks may be incomplete."""


def stored(num_experts: int, parts: tuple[int, ...], depth: int) -> tuple[torch.Tensor, BlockFactors, torch.Tensor]:
    """Return an FP8 weight, its factors, and its values in float64."""
    values = torch.randn(num_experts, sum(parts), depth).clamp(-3, 3).to(torch.float8_e4m3fn)
    blocks = [-(-part // BLOCK) for part in parts]
    scale = torch.rand(num_experts, sum(blocks), -(-depth // BLOCK)) + 0.5
    wide, grids, row, scale_row = [], [], 0, 0
    for part, count in zip(parts, blocks, strict=True):
        rows, scale_rows = (row, row + part), (scale_row, scale_row + count)
        wide.append(dequantise_blocks(values[:, slice(*rows)], scale[:, slice(*scale_rows)], (BLOCK, BLOCK)).double())
        grids.append((rows, scale_rows, BLOCK, 0))
        row, scale_row = rows[1], scale_rows[1]
    factors = BlockFactors(scale.to(DEVICE), row_map(grids, torch.device(DEVICE)), BLOCK)
    return values.to(DEVICE), factors, torch.cat(wide, dim=1).to(DEVICE)


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_rows", "parts", "depth"), [(1, (64,), 64), (3, (70, 33), 2100), (17, (256, 40), 128), (64, (8,), 40)]
)
def test_products_with_fp8_blocks(num_rows: int, parts: tuple[int, ...], depth: int, dtype: torch.dtype) -> None:
    weight, factors, wide = stored(1, parts, depth)
    x = torch.randn(num_rows, depth + 8).to(DEVICE, dtype)[:, :depth]
    factors = BlockFactors(factors.scale[0], factors.row_of, factors.block_columns)
    assert distance(product(x, weight[0], factors), x.double() @ wide[0].T) < LIMITS[dtype]


@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "num_experts", "choices"), [(1, 8, 2), (5, 4, 3), (300, 4, 2)])
def test_products_with_the_experts_of_each_choice(
    num_tokens: int, num_experts: int, choices: int, dtype: torch.dtype, is_fp8: bool
) -> None:
    depth, parts = 100, (70, 33)
    weight, factors, wide = stored(num_experts, parts, depth)
    if not is_fp8:
        weight = wide.to(dtype)
        wide = weight.double()
    scores = torch.rand(num_tokens, num_experts)
    scores[:, -1] = 0  # an expert that nobody chooses, unless all are
    shares, experts = (t.to(DEVICE) for t in scores.topk(choices))
    groups = group_choices(experts.flatten(), num_experts)
    x = torch.randn(num_tokens, depth).to(DEVICE, dtype)
    out = grouped_product(
        x, weight, factors if is_fp8 else None, groups, choices_per_row=choices, shares_C=shares.flatten()
    )
    expected = torch.einsum("tk,tcnk->tcn", x.double(), wide[experts]) * shares[..., None].double()
    assert distance(out, expected.flatten(0, 1)) < LIMITS[dtype]


@pytest.mark.parametrize("count", [1, 50, 256, 257, 2000])
def test_each_block_of_sorted_choices_has_one_expert(count: int) -> None:
    experts = torch.randint(0, 5, (count,), device=DEVICE)
    experts[experts == 3] = 4
    groups = group_choices(experts, 6)
    seen = []
    for rows, expert in zip(groups.rows.view(-1, groups.block_rows), groups.experts.tolist(), strict=True):
        chosen = rows[rows < count]
        assert expert < 6 or not len(chosen)
        assert all(experts[row] == expert for row in chosen)
        seen += chosen.tolist()
    assert sorted(seen) == list(range(count))
