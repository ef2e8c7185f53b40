"""What a rank reads of each stored tensor, held against its reads and against loads of checkpoints that have nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.checkpoint.partial import merged
from loadmaster.errors import ArgumentError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import NeededTensor, Plan, build_plan, needed, prove, shard_ranges
from tests.conftest import Tiny

LAYOUTS = {
    "glm-5.1-fp8": ParallelLayout(2, 2, enable_expert_parallel=True, num_draft_layers=1),
    "qwen3-moe": ParallelLayout(1, 4, enable_expert_parallel=True, num_redundant_experts=4),
    "kimi-k2-int4": ParallelLayout(2, 2),
    "llama-awq": ParallelLayout(1, 2),
}


def planned(path: Path, layout: ParallelLayout) -> Plan:
    return build_plan(open_checkpoint(path), layout)


@pytest.mark.parametrize("preset", LAYOUTS)
def test_the_ranges_of_all_tensors_are_what_the_rank_reads_of_the_shards(preset: str, tiny: Tiny) -> None:
    plan = planned(tiny(preset), LAYOUTS[preset])
    for rank in range(plan.num_ranks):
        spans = {file.name: [(0, file.header_bytes)] for file in plan.checkpoint.files}
        for tensor in needed(plan, rank).values():
            spans[tensor.shard] += tensor.ranges
        assert {shard: merged(of_shard) for shard, of_shard in spans.items()} == shard_ranges(plan, [rank])
        places = [(tensor.shard, tensor.start) for tensor in needed(plan, rank).values()]
        assert places == sorted(places)


@pytest.mark.parametrize("preset", LAYOUTS)
def test_a_rank_loads_the_same_from_a_checkpoint_that_has_nothing_else(preset: str, tiny: Tiny, tmp_path: Path) -> None:
    path, layout = tiny(preset), LAYOUTS[preset]
    plan = planned(path, layout)
    rank = plan.num_ranks - 1
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    for file in plan.checkpoint.files:
        content = bytearray((path / file.name).read_bytes())
        kept = [(0, file.header_bytes)]
        kept += [span for t in needed(plan, rank).values() if t.shard == file.name for span in t.ranges]
        lacking = bytearray(b"\xa5" * len(content))
        for start, end in kept:
            lacking[start:end] = content[start:end]
        assert lacking != content
        (copy / file.name).write_bytes(lacking)
    whole, part = (load_rank(prove(planned(p, layout)).require_proven(), rank).tensors for p in (path, copy))
    assert whole.keys() == part.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor.view(torch.uint8), part[name].view(torch.uint8)), name


def test_copies_of_experts_are_needed_where_they_are_placed(tiny: Tiny) -> None:
    path = tiny("qwen3-moe")

    def experts(layout: ParallelLayout, rank: int) -> set[int]:
        names = [n for n in needed(planned(path, layout), rank) if ".experts." in n]
        return {int(name.split(".experts.")[1].split(".")[0]) for name in names}

    num_experts = planned(path, ParallelLayout()).config["num_experts"]
    plain = ParallelLayout(1, 4, enable_expert_parallel=True)
    assert [experts(plain, rank) for rank in range(4)] == [
        set(range(num_experts // 4 * rank, num_experts // 4 * (rank + 1))) for rank in range(4)
    ]
    assert {0, 1} & experts(LAYOUTS["qwen3-moe"], 3)  # copies of the first experts come after the last


def test_rows_and_columns_that_are_cut(tiny: Tiny) -> None:
    plan = planned(tiny("llama"), ParallelLayout(1, 2))
    found = needed(plan, 1)
    query, output = found["model.layers.0.self_attn.q_proj.weight"], found["model.layers.0.self_attn.o_proj.weight"]
    rows = query.shape[0]
    assert (query.rows, query.is_whole, len(query.ranges)) == ((rows // 2, rows), False, 1)
    assert output.rows == (0, output.shape[0])
    assert query.fetched_bytes * 2 == query.num_bytes < output.fetched_bytes * 2
    assert found["model.norm.weight"].is_whole


def test_a_rank_that_the_layout_lacks_is_refused(tiny: Tiny) -> None:
    plan = planned(tiny("llama"), ParallelLayout(2))
    with pytest.raises(ArgumentError, match="rank is 2, expected 0 to 1"):
        needed(plan, 2)
    with pytest.raises(ArgumentError, match="expected a plan, as build_plan returns"):
        needed("plan", 0)  # type: ignore[arg-type]


def test_the_rows_of_a_tensor_that_is_cut_and_of_a_number() -> None:
    cut = NeededTensor("w", "a.safetensors", "BF16", (4, 3), 100, 24, ((106, 112), (112, 117)))
    assert cut.rows == (1, 3)  # rows of six bytes: one whole, and a part of the next
    number = NeededTensor("s", "a.safetensors", "F32", (), 100, 4, ((100, 104),))
    assert number.rows == (0, 1)
