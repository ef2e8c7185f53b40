"""``--layer-partition auto`` on models of full size: better than the even division, and never at a cut that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout, partition
from loadmaster.plan import Plan, build_plan
from loadmaster.sizing import MemoryOptions, auto_partition
from loadmaster.sizing.auto import costs_of
from loadmaster.sizing.weights import WeightSizes
from loadmaster.synth import PRESETS, write_full_size
from tests.conftest import Tiny

NARROW = {"n_routed_experts": 8, "n_group": 1, "topk_group": 1}
"""Fewer experts, so that the headers are quickly written; layers, widths and MTP are as published."""


def full(preset: str, path: Path, overrides: dict[str, int], layout: ParallelLayout) -> Plan:
    write_full_size(PRESETS[preset], path, overrides=overrides)
    return build_plan(open_checkpoint(path), layout)


@pytest.mark.parametrize(
    ("preset", "overrides", "drafts", "stages"),
    [("glm-5.1-fp8", NARROW, 1, 8), ("deepseek-v3", NARROW, 1, 8), ("gemma-3", {}, 0, 4)],
)
def test_auto_beats_the_even_division(
    preset: str, overrides: dict[str, int], drafts: int, stages: int, tmp_path: Path
) -> None:
    plan = full(preset, tmp_path / "full", overrides, ParallelLayout(stages, num_draft_layers=drafts))
    costs = costs_of(plan, WeightSizes(plan).at(plan.layout), "native", MemoryOptions())
    num_layers = len(plan.schema.layers)
    counts = auto_partition(plan, "native")
    even = [end - first for first, end in partition(num_layers, stages)]
    assert (len(counts), sum(counts), min(counts) >= 1) == (stages, num_layers, True)
    assert max(costs.loads(counts)) < max(costs.loads(even)) * 0.95


def test_auto_cuts_only_where_a_stage_may_begin(tmp_path: Path) -> None:
    overrides = {"num_hidden_layers": 16, "n_routed_experts": 8}
    write_full_size(PRESETS["glm-5.2-fp8"], tmp_path / "glm", overrides=overrides)
    plan = build_plan(open_checkpoint(tmp_path / "glm"), ParallelLayout(3), target="vllm-0.32")
    counts = auto_partition(plan, "vllm")
    starts = [sum(counts[:n]) for n in (1, 2)]
    assert all(len(plan.schema.carried_into(start)) == 1 for start in starts)


def test_the_requests_that_were_asked_for_count(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("smollm2")), ParallelLayout(2))
    weights = WeightSizes(plan).at(plan.layout)
    few, many = (costs_of(plan, weights, "native", MemoryOptions(max_num_seqs=n)) for n in (1, 4))
    cache = (few.memory[0] - weights.layers[0], many.memory[0] - weights.layers[0])
    assert cache[0] > 0 and cache[1] == 4 * cache[0]
