"""The cache that is sized is the one that is allocated: a real stage's, for every family that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import read_model
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.models import build_stage
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.sizing import plan_cache
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.torch_dtypes import TORCH
from tests.conftest import Tiny

RUNS = [
    *("glm-5.1-fp8", "glm-5.2-fp8", "deepseek-v3", "deepseek-v3.2", "kimi-k2"),
    *("llama", "smollm2", "mistral", "qwen2", "qwen3", "gemma-3", "phi-4", "olmo-2", "olmo-3"),
    *("qwen2-moe", "qwen3-moe", "mixtral", "minimax-m2", "glm-4.5-air", "gpt-oss-bf16", "granite-moe"),
]


class OneOf:
    """A tensor-parallel group without any other rank: a stage that is built with it computes nothing."""

    def __init__(self, slot: int, size: int) -> None:
        self.slot, self.size = slot, size


def stage_page_bytes(plan: Plan, rank: int, page_size: int) -> int:
    """Return what the real stage of a rank says of its pages."""
    held = plan.rank(rank)
    tensors = {s.name: torch.empty(s.shape, dtype=TORCH[s.dtype]) for s in held.specs if s.alias is None}
    tensors |= {s.name: tensors[s.alias] for s in held.specs if s.alias is not None}
    layout = plan.layout
    group: Any = OneOf(held.tp_rank, layout.tensor_parallel_size) if layout.tensor_parallel_size > 1 else None
    stage = build_stage(
        read_model(plan.config),
        held.specs,
        tensors,
        layers=range(*held.layers),
        first=held.pp_rank == 0,
        last=held.pp_rank == layout.pipeline_parallel_size - 1,
        dtype=TORCH[plan.dtype],
        num_drafts=len(held.draft_layers),
        group=group,
    )
    return stage.page_bytes(page_size)


@pytest.mark.parametrize("preset", RUNS)
def test_a_page_is_as_large_as_the_real_stages_page(preset: str, tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny(preset))
    drafts = 1 if preset.startswith(("glm", "deepseek")) else 0
    ranks = 1 if preset == "smollm2" else 2  # the tiny one does not divide
    for layout in (ParallelLayout(2, num_draft_layers=drafts), ParallelLayout(1, ranks, num_draft_layers=drafts)):
        plan = build_plan(checkpoint, layout)
        cache = plan_cache(plan, block_size=8)
        for rank in range(plan.num_ranks):
            first, end = plan.rank(rank).layers
            is_last = end == len(plan.schema.layers)
            assert cache.block_bytes(first, end, is_last=is_last) == stage_page_bytes(plan, rank, 8) > 0


def test_key_and_value_heads_fewer_than_ranks_are_stored_on_each_of_them(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("llama")), ParallelLayout(1, 4))  # 2 heads over 4 ranks
    assert [row.num_heads for row in plan_cache(plan).layers[0].rows] == [1, 1]
    assert plan_cache(plan).block_bytes(0, 4, is_last=True) == stage_page_bytes(plan, 0, 16)


def test_a_model_with_linear_attention_is_unknown_and_not_small(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedError, match="a state for each request"):
        plan_cache(build_plan(open_checkpoint(tiny("qwen3-next"))))


def test_a_family_that_does_not_run_is_sized_by_its_schema(tmp_path: Path) -> None:
    write_tiny(PRESETS["llama-4"], tmp_path / "tiny")
    plan = build_plan(open_checkpoint(tmp_path / "tiny"))
    config = plan.config["text_config"]
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * 2  # keys and values, BF16
    assert plan_cache(plan, block_size=1).block_bytes(0, 4, is_last=True) == 4 * per_layer


def test_requests_take_whole_pages(tiny: Tiny) -> None:
    cache = plan_cache(build_plan(open_checkpoint(tiny("llama"))))
    assert [cache.request_blocks(n) for n in (1, 16, 17)] == [1, 1, 2]
    assert cache.num_tokens(10, 64) == 160
    assert cache.num_tokens(10, 24) == 5 * 24  # 24 tokens take two pages
    assert (cache.longest(3, 1000), cache.longest(3, 20), cache.longest(0, 20)) == (48, 20, 0)
