"""Views of stored tensors: which box of which factored shape, in which order."""

from __future__ import annotations

import pytest

from loadmaster.architectures.algebra import Leaf, Stored, restrict, stored
from loadmaster.architectures.views import permute, pick, split, with_ones


def test_interleaved_rows_are_a_box_in_the_factored_shape() -> None:
    view = pick(split(stored(Leaf("gate_up", "F32", (8, 3))), 0, (4, 2)), 1, 1)
    assert view == Stored(Leaf("gate_up", "F32", (8, 3)), (4, 2, 3), ((0, 4), (1, 2), (0, 3)), (0, 2))


def test_dims_are_permuted_picked_and_split_in_the_order_of_the_view() -> None:
    view = permute(stored(Leaf("a", "F32", (2, 6, 4))), (2, 0, 1))
    assert view.shape == (4, 2, 6)
    assert split(view, 2, (3, 2)).shape == (4, 2, 3, 2)
    assert pick(split(view, 2, (3, 2)), 0, 3) == Stored(
        view.leaf, (2, 3, 2, 4), ((0, 2), (0, 3), (0, 2), (3, 4)), (0, 1, 2)
    )
    assert split(split(view, 2, (3, 2)), 0, (2, 2)).order == (3, 4, 0, 1, 2)
    half = restrict(view, ((1, 4), (0, 2), (0, 6)))
    assert isinstance(half, Stored)
    assert pick(half, 0, 1).box == ((0, 2), (0, 6), (2, 3))
    with pytest.raises(AssertionError, match="whole dim"):
        split(half, 0, (3, 1))


def test_dims_of_one_element_are_added_on_both_sides_of_a_view_in_its_order() -> None:
    view = permute(stored(Leaf("a", "F32", (3, 5))), (1, 0))
    wider = with_ones(view, 2, 1)
    assert wider == Stored(view.leaf, (1, 1, 3, 5, 1), ((0, 1), (0, 1), (0, 3), (0, 5), (0, 1)), (0, 1, 3, 2, 4))
    assert wider.shape == (1, 1, 5, 3, 1)
    assert with_ones(view, 0, 0) == view
