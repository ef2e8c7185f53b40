"""Partitions against brute force: the largest load is least, and of equals the cuts carry least."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadmaster.errors import LayoutError
from loadmaster.sizing.partition import Costs, balanced

SIZES = st.integers(1, 9).map(float)


def every_partition(costs: Costs, num_stages: int) -> list[tuple[int, ...]]:
    """Return all partitions that cut only where a stage may begin."""
    num_layers = len(costs.memory)
    inside = [layer for layer in range(1, num_layers) if costs.cuttable[layer]]
    return [tuple(b - a for a, b in pairwise((0, *cuts, num_layers))) for cuts in combinations(inside, num_stages - 1)]


def carried(costs: Costs, counts: tuple[int, ...]) -> float:
    starts = [sum(counts[:n]) for n in range(1, len(counts))]
    return sum(costs.carried[layer] for layer in starts)


@st.composite
def made_costs(draw: st.DrawFn) -> Costs:
    num_layers = draw(st.integers(1, 8))
    of_layers = st.lists(SIZES, min_size=num_layers, max_size=num_layers).map(tuple)
    pair = st.tuples(SIZES, SIZES)
    flags = st.lists(st.booleans(), min_size=num_layers, max_size=num_layers).map(tuple)
    return Costs(draw(of_layers), draw(of_layers), draw(pair), draw(pair), draw(of_layers), draw(flags))


@settings(max_examples=40)
@given(made_costs(), st.integers(1, 5))
def test_no_partition_has_a_smaller_largest_load_or_as_small_a_one_and_carries_less(costs: Costs, stages: int) -> None:
    every = every_partition(costs, stages)
    if not every:
        with pytest.raises(LayoutError):
            balanced(costs, stages)
        return
    counts = balanced(costs, stages)
    assert counts in every
    least = min(max(costs.loads(other)) for other in every)
    assert max(costs.loads(counts)) == pytest.approx(least)
    equals = [other for other in every if max(costs.loads(other)) <= least * (1 + 1e-12)]
    assert carried(costs, counts) == min(carried(costs, other) for other in equals)


@settings(max_examples=40)
@given(made_costs(), st.lists(st.integers(5, 60).map(float), min_size=1, max_size=4))
def test_stages_that_fit_their_devices_are_found_if_there_are_any(costs: Costs, rooms: list[float]) -> None:
    costs = Costs(*(getattr(costs, name) for name in costs.__dataclass_fields__ if name != "room"), room=tuple(rooms))
    stages = len(rooms)

    def fits(counts: tuple[int, ...]) -> bool:
        starts = [sum(counts[:n]) for n in range(stages + 1)]
        memory = [sum(costs.memory[a:b]) for a, b in pairwise(starts)]
        memory[0] += costs.memory_beside[0]
        memory[-1] += costs.memory_beside[1]
        return all(m <= room for m, room in zip(memory, rooms, strict=True))

    every = every_partition(costs, stages)
    if any(map(fits, every)):
        assert fits(balanced(costs, stages))


def test_an_embedding_and_a_head_take_layers_from_the_first_and_the_last_stage() -> None:
    n = 12
    costs = Costs((1.0,) * n, (0.1,) * n, (2.0, 2.0), (0.2, 0.2), (1.0,) * n, (True,) * n)
    assert balanced(costs, 4) == (2, 4, 4, 2)


def test_a_boundary_that_carries_more_is_avoided_where_that_costs_nothing() -> None:
    costs = Costs((1.0,) * 5, (1.0,) * 5, (0.0, 0.0), (0.0, 0.0), (0, 1, 9, 1, 1), (True,) * 5)
    assert balanced(costs, 2) == (3, 2)
    assert balanced(Costs(costs.memory, costs.compute, (0, 0), (0, 0), (0, 1, 1, 9, 1), (True,) * 5), 2) == (2, 3)


def test_unequal_devices_get_layers_by_their_memory() -> None:
    costs = Costs((1.0,) * 9, (1.0,) * 9, (0.0, 0.0), (0.0, 0.0), (1.0,) * 9, (True,) * 9, room=(8.0, 8.0, 2.0))
    assert balanced(costs, 3) == (4, 4, 1)
