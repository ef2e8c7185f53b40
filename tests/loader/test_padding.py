"""Where a dim does not divide, zeros stand after its end: each of their bytes is written, and by nothing that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.loader import Receiver, load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.loader.reference import Reference, differences, read_all

BLOCKS = 5
"""Blocks of 32 in an expert's inner size: over 4 ranks 2, 2, 1 and 0, as vLLM deals them."""

LAYOUTS = {
    "tp 2": ParallelLayout(1, 2),
    "tp 4": ParallelLayout(1, 4),
    "tp 8": ParallelLayout(1, 8),
    "dp 2 tp 2": ParallelLayout(1, 2, data_parallel_size=2),
    "pp 2 tp 4": ParallelLayout(2, 4),
    "tp 4 ep": ParallelLayout(1, 4, True),
}


@pytest.fixture(scope="module", params=["gpt-oss", "gpt-oss-bf16"])
def uneven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    inner = 32 * BLOCKS if request.param == "gpt-oss" else 162  # 162 rows: 41 each over 4 ranks, 39 on the last
    write_tiny(PRESETS[request.param], path, overrides={"intermediate_size": inner}, num_shards=2)
    return path


def _plan(path: Path, layout: ParallelLayout) -> ProvenPlan:
    return prove(build_plan(open_checkpoint(path), layout)).require_proven()


def _poisoned(plan: ProvenPlan, rank: int) -> dict[str, Any]:
    own = {name: torch.empty_like(t) for name, t in load_rank(plan, rank, num_readers=1).tensors.items()}
    for tensor in own.values():
        tensor.view(torch.uint8).fill_(0xA5)
    return own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_that_do_not_divide_are_padded_with_zeros(uneven: Path, layout: str) -> None:
    plan, stored = _plan(uneven, LAYOUTS[layout]), read_all(uneven)
    for rank in range(plan.num_ranks):
        own = _poisoned(plan, rank)
        load_rank(plan, rank, num_readers=1, tensors=own)
        assert differences(own, Reference.at(uneven, LAYOUTS[layout], rank, stored).params) == []


def test_pushed_tensors_leave_the_same_zeros(uneven: Path) -> None:
    plan, stored = _plan(uneven, LAYOUTS["tp 4"]), read_all(uneven)
    for rank in range(4):
        receiver = Receiver(plan, rank)
        for name, tensor in stored.items():
            receiver.offer(name, tensor)
        expected = Reference.at(uneven, LAYOUTS["tp 4"], rank, stored).params
        assert differences(receiver.finish().tensors, expected) == []


def test_gate_and_up_are_cut_where_the_columns_of_down_are(tmp_path: Path) -> None:
    """Rows of ``w13`` that feed another rank's columns of ``w2`` would be zeros in a sum, and nothing would fail."""
    write_tiny(PRESETS["gpt-oss"], tmp_path, overrides={"intermediate_size": 32 * BLOCKS})
    plan = _plan(tmp_path, LAYOUTS["tp 4"])
    held = []
    for rank in range(4):
        shapes = {s.name.removeprefix("layers.0.mlp.experts."): s.shape for s in plan.rank(rank).specs}
        rows = shapes["w13_blocks"][1], shapes["w13_scales"][1], shapes["w13_bias"][1]
        assert rows == (128, 128, 128) and shapes["w2_blocks"][2:] == (2, 16) and shapes["w2_scales"][2] == 2
        # what is read of one expert's down: blocks of this rank
        boxes = [v.box for b in plan.rank(rank).groups for v in b.views if v.leaf.name.endswith("moe.down/_scales")]
        held.append({box[2] for box in boxes})
    assert held == [{(0, 2)}, {(2, 4)}, {(4, 5)}, set()]


@pytest.mark.parametrize("ranks", [4, 8, 16])
def test_the_published_size_is_laid_out_as_vllm_does(ranks: int, tmp_path: Path) -> None:
    """2880 elements are 90 blocks: 23, 12 and 6 a rank."""
    write_tiny(PRESETS["gpt-oss"], tmp_path, overrides={"intermediate_size": 2880, "num_attention_heads": 16})
    plan = _plan(tmp_path, ParallelLayout(1, ranks))
    last = {s.name: s for s in plan.rank(ranks - 1).specs}
    blocks = -(-90 // ranks)
    assert last["layers.0.mlp.experts.w2_blocks"].shape[2] == blocks
    assert last["layers.0.mlp.experts.w13_blocks"].shape[1] == 2 * 32 * blocks
    (grid,) = last["layers.0.mlp.experts.w2_blocks"].grids
    assert grid.first == (0, (ranks - 1) * blocks) and grid.block == (1, 32)
