"""Another partition is named where one fits the capacity, and only there; all partitions are tried to know."""

from __future__ import annotations

from itertools import product

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.plan.diagnosis.capacity import fitting_partition
from tests.conftest import Tiny


@pytest.mark.parametrize(
    ("preset", "pp", "tp"), [("llama", 2, 1), ("llama", 3, 2), ("smollm2", 2, 1), ("glm-5.1-fp8", 3, 1)]
)
def test_a_partition_is_named_exactly_where_one_fits(preset: str, pp: int, tp: int, tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny(preset))
    plan = build_plan(checkpoint, ParallelLayout(pp, tp))
    resident = [plan.rank(r).resident_bytes for r in range(plan.num_ranks)]
    num_layers = len(plan.schema.layers)
    most = {}
    for counts in product(range(1, num_layers), repeat=pp):
        if sum(counts) == num_layers:
            other = build_plan(checkpoint, ParallelLayout(pp, tp, layer_partition=counts))
            most[counts] = max(other.rank(r).resident_bytes for r in range(other.num_ranks))
    fits = 0
    for capacity in sorted({m + more for m in most.values() for more in (-1, 0)}):
        found = fitting_partition(plan, resident, capacity)
        assert (found is not None) == any(m <= capacity for m in most.values())
        assert found is None or most[found] <= capacity
        fits += found is not None
    assert fits


def test_the_hint_names_the_partition_and_is_silent_where_none_can_help(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    plan = build_plan(checkpoint, ParallelLayout(2, layer_partition=(3, 1)))
    even = max(r.resident_bytes for r in prove(build_plan(checkpoint, ParallelLayout(2))).ranks)
    (found,) = prove(plan, capacity_bytes=even).findings
    assert found.hint == "use more ranks, or --layer-partition 2,2, which fits"
    (found,) = prove(plan, capacity_bytes=even - 1).findings
    assert found.hint == "use more ranks"
    (found,) = prove(build_plan(checkpoint), capacity_bytes=1).findings
    assert found.hint == "use more ranks"
