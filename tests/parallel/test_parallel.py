from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.errors import LayoutError
from loadmaster.parallel import Cut, ParallelLayout, cut, deal, nearest_starts, partition


def test_layers_divide_as_vllm_divides_them() -> None:
    # get_pp_indices of vLLM 0.32: the remainder goes backwards from the last but one
    counts = [b - a for a, b in partition(61, 8)]
    assert sum(counts) == 61
    assert counts == [7, 7, 8, 8, 8, 8, 8, 7]


def test_an_explicit_partition_must_sum_to_the_layers() -> None:
    assert partition(5, 2, (4, 1)) == ((0, 4), (4, 5))
    with pytest.raises(LayoutError, match="sums to 6"):
        partition(5, 2, (4, 2))
    with pytest.raises(LayoutError, match="without layers"):
        partition(5, 2, (5, 0))
    with pytest.raises(LayoutError, match="has 1 stages, expected pipeline_parallel_size = 2"):
        ParallelLayout(2, layer_partition=(5,))


def test_more_stages_than_layers_are_refused_with_the_most_that_go() -> None:
    with pytest.raises(LayoutError, match="9 pipeline stages for 8 layers") as refused:
        partition(8, 9)
    assert "at most 8" in str(refused.value.hint)


def test_ranks_are_numbered_stage_by_stage() -> None:
    layout = ParallelLayout(2, 4)
    assert [layout.coordinate(r).pp_rank for r in range(8)] == [0] * 4 + [1] * 4
    assert layout.stage_ranks(1) == (4, 5, 6, 7)
    assert ParallelLayout.from_json(layout.as_json()) == layout


def test_key_value_heads_fewer_than_ranks_are_repeated_and_query_heads_are_not() -> None:
    assert [cut(256, 128, 4, i, repeat=True) for i in range(4)] == [
        Cut(0, 128, 2),
        Cut(0, 128, 2),
        Cut(128, 256, 2),
        Cut(128, 256, 2),
    ]
    with pytest.raises(LayoutError, match="cannot be divided over 4 ranks"):
        cut(256, 128, 4, 0)


def test_things_are_dealt_as_evenly_as_can_be() -> None:
    for number in range(8):
        for count in range(1, 6):
            runs = [deal(number, count, index) for index in range(count)]
            assert [run[0] for run in runs] + [number] == [0, *(run[1] for run in runs)]
            sizes = [end - start for start, end in runs]
            assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_redundant_experts_are_dealt_out_evenly_or_not_at_all() -> None:
    layout = ParallelLayout(1, 4, True, num_redundant_experts=1)
    with pytest.raises(LayoutError, match=r"7 experts, redundant ones included, .* evenly to 4 ranks"):
        layout.expert_slots(6)
    assert ParallelLayout(1, 4, True, num_redundant_experts=2).held_slots(8, 3) == (6, 8)


def test_a_unit_that_does_not_divide_a_dim_is_refused() -> None:
    with pytest.raises(LayoutError, match="100 elements are no multiple of the unit 16"):
        cut(100, 16, 2, 0)


def test_a_refused_cut_names_the_legal_sizes_and_multiples_only_where_units_repeat() -> None:
    with pytest.raises(LayoutError, match="6 units of 8 cannot be divided over 4 ranks") as refused:
        cut(48, 8, 4, 0)
    assert refused.value.hint == "legal sizes here: 1, 2, 3, 6"
    with pytest.raises(LayoutError) as refused:
        cut(48, 8, 4, 0, repeat=True)
    assert refused.value.hint == "legal sizes here: 1, 2, 3, 6, or a multiple of 6"


@given(
    st.sets(st.integers(1, 9), max_size=9),
    st.sets(st.integers(1, 9), max_size=4),
)
def test_the_nearest_starts_are_the_nearest_of_all_that_are_legal(legal: set[int], wanted: set[int]) -> None:
    def price(starts: tuple[int, ...]) -> tuple[int, int]:
        moves = [abs(a - b) for a, b in zip(starts, sorted(wanted), strict=True)]
        return sum(moves), sum(n * n for n in moves)

    found = nearest_starts(sorted(wanted), sorted(legal))
    every = list(combinations(sorted(legal), len(wanted)))
    assert (found is None) == (not every)
    if found is not None:
        assert found in every
        assert price(found) == min(map(price, every))


def test_of_two_as_near_the_later_start_is_taken() -> None:
    assert nearest_starts((5,), (4, 6)) == (6,)
    assert nearest_starts((4, 5), (3, 6)) == (3, 6)
    assert nearest_starts((), (3,)) == ()
