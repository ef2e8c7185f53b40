"""What is too large for staging memory is cut where that shortens what is read."""

from __future__ import annotations

import pytest

from loadmaster.architectures.algebra import Leaf, Region, Stored, decode, reorder, stored
from loadmaster.architectures.views import permute
from loadmaster.formats import awq
from loadmaster.loader.operations import slabs

TENSOR = stored(Leaf("w/weight", "BF16", (4, 8)))
"""Four rows of 16 bytes."""


@pytest.mark.parametrize(
    ("view", "limit", "regions"),
    [
        (TENSOR, 64, [((0, 4), (0, 8))]),
        (TENSOR, 32, [((0, 2), (0, 8)), ((2, 4), (0, 8))]),
        (permute(TENSOR, (1, 0)), 32, [((0, 8), (0, 2)), ((0, 8), (2, 4))]),
    ],
    ids=["it fits", "rows", "rows, stored transposed"],
)
def test_a_source_is_cut_between_the_rows_that_are_stored(view: Stored, limit: int, regions: list[Region]) -> None:
    assert [region for region, _ in slabs(view, limit)] == regions


def test_a_row_that_is_too_long_is_cut_too() -> None:
    assert [region for region, _ in slabs(permute(TENSOR, (1, 0)), 16)] == [
        ((0, 8), (row, row + 1)) for row in range(4)
    ]
    columns = [region for region, part in slabs(stored(Leaf("w/weight", "BF16", (1, 16))), 16)]
    assert columns == [((0, 1), (0, 8)), ((0, 1), (8, 16))]


def test_a_cut_of_heads_that_are_reordered_splits_no_packed_word() -> None:
    """Heads of 12 rows, packed by 8: rows can only be cut at multiples of 24."""
    shapes = {"qweight": ("I32", (8, 3)), "scales": ("F16", (1, 24)), "qzeros": ("I32", (1, 3))}
    operands = tuple(stored(Leaf(f"q/{suffix}", *of)) for suffix, of in shapes.items())
    heads = reorder(decode(awq(None), operands, (24, 8)), 0, (6, 2))
    assert [region for region, _ in slabs(heads, 128)] == [((0, 24), (0, 4)), ((0, 24), (4, 8))]
