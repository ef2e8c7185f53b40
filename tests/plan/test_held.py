"""How an engine lays out what is stored: alternating rows apart, the matrices of a stack beside one another."""

from __future__ import annotations

import numpy as np

from loadmaster.architectures.algebra import Cast, Each, Leaf, Shard, localise, stored
from loadmaster.plan.held import laid
from tests.architectures.evaluate import evaluate


def test_alternating_rows_are_taken_apart_in_what_each_rank_holds() -> None:
    """g0 u0 g1 u1 g2 u2 g3 u3 on two ranks: the second has g2 g3 u2 u3."""
    rows = np.arange(8).reshape(8, 1) * np.ones((1, 3), dtype=np.int64)
    cut = Shard(stored(Leaf("w", "BF16", (8, 3))), 0, "tp", unit=2)
    held = [laid(localise(cut, {"tp": (rank, 2)}), "apart") for rank in (0, 1)]
    assert [evaluate(e, {"w": rows})[:, 0].tolist() for e in held] == [[0, 2, 1, 3], [4, 6, 5, 7]]


def test_rows_of_each_expert_are_taken_apart_by_themselves() -> None:
    experts = np.arange(2 * 4).reshape(2, 4, 1)
    stack = Each(stored(Leaf("w", "BF16", (4, 1), member=True)), (1, 0))
    assert evaluate(laid(stack, "apart"), {"w": experts})[..., 0].tolist() == [[4, 6, 5, 7], [0, 2, 1, 3]]


def test_matrices_of_a_stack_are_beside_one_another() -> None:
    """Two of 1 × 4, of which the second rank has two columns each."""
    stack = Shard(Cast(stored(Leaf("w", "BF16", (2, 1, 4))), "F32", None), 2, "tp")
    held = laid(localise(stack, {"tp": (1, 2)}), "beside")
    assert held.shape == (1, 4)
    assert evaluate(held, {"w": np.arange(8).reshape(2, 1, 4)}).tolist() == [[2, 3, 6, 7]]


def test_what_is_not_laid_out_is_left_as_it_is() -> None:
    e = stored(Leaf("w", "BF16", (2, 2)))
    assert laid(e, None) is e
