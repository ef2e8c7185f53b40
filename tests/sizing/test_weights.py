"""Sizes without planning are those of plans, on every layout."""

from __future__ import annotations

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.sizing.weights import WeightSizes
from tests.conftest import Tiny

LAYOUTS = [
    ParallelLayout(),
    ParallelLayout(2),
    ParallelLayout(4, layer_partition=(1, 1, 1, 1)),
    ParallelLayout(1, 2),
    ParallelLayout(2, 2, enable_expert_parallel=True),
    ParallelLayout(2, 1, data_parallel_size=2),
    ParallelLayout(1, 2, enable_expert_parallel=True, data_parallel_size=2),
    ParallelLayout(1, 1, enable_expert_parallel=True, data_parallel_size=3),
]


@pytest.mark.parametrize("preset", ["llama", "smollm2", "qwen3-moe", "gpt-oss", "gemma-3", "granite-moe"])
def test_sizes_are_those_of_the_plan_on_the_fullest_rank_of_each_stage(preset: str, tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny(preset))
    sizes = WeightSizes(build_plan(checkpoint))
    tried = 0
    for layout in LAYOUTS:
        try:
            plan = build_plan(checkpoint, layout)
        except LayoutError:
            with pytest.raises(LayoutError):
                sizes.at(layout)
            continue
        tried += 1
        check(plan, sizes)
    assert tried >= 3


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "deepseek-v3"])
def test_mtp_layers_and_what_they_share_with_the_model_are_counted(preset: str, tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny(preset))
    sizes = WeightSizes(build_plan(checkpoint, ParallelLayout(num_draft_layers=1)))
    for pp, tp, ep in ((1, 1, False), (2, 1, False), (3, 2, True), (2, 2, False)):
        check(build_plan(checkpoint, ParallelLayout(pp, tp, ep, num_draft_layers=1)), sizes)


def check(plan, sizes) -> None:
    weights = sizes.at(plan.layout)
    for stage, (first, end) in enumerate(plan.stages):
        resident = [plan.rank(rank).resident_bytes for rank in plan.layout.stage_ranks(stage)]
        assert weights.stage(first, end) == resident[0]
        assert max(resident) <= resident[0] * 1.001  # in tiny models a cut splits blocks, and one side has a scale more


def test_vllms_parameters_are_sized_alike(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("qwen3-moe"))
    sizes = WeightSizes(build_plan(checkpoint, target="vllm-0.32"))
    for layout in LAYOUTS[:6]:
        check(build_plan(checkpoint, layout, target="vllm-0.32"), sizes)


def test_an_illegal_size_is_refused_with_the_legal_ones(tiny: Tiny) -> None:
    with pytest.raises(LayoutError, match="do not divide over 3"):
        WeightSizes(build_plan(open_checkpoint(tiny("qwen3-moe")))).at(ParallelLayout(1, 3))
