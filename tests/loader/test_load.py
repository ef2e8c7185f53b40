"""Loading a rank: what it reports, what it refuses, and that neither budget nor way changes a byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LoadError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, ProvenPlan, build_plan, prove
from tests.conftest import Tiny
from tests.loader.reference import Reference, differences


def _plan(path: Path, layout: ParallelLayout | None = None, dtype: str | None = None) -> ProvenPlan:
    return prove(build_plan(open_checkpoint(path), layout, dtype=dtype)).require_proven()


@pytest.mark.parametrize("staging", [2**16, 2**20])
def test_a_small_staging_budget_changes_nothing(staging: int, tiny: Tiny) -> None:
    plan = _plan(tiny("glm-5.1-fp8"), ParallelLayout(1, 4))
    for rank in (0, 3):
        small = load_rank(plan, rank, staging_bytes=staging, num_readers=1)
        assert differences(small.tensors, load_rank(plan, rank).tensors) == []


def test_tied_embeddings_share_memory_on_one_stage_and_are_copied_on_two(tiny: Tiny) -> None:
    path = tiny("smollm2")
    one = load_rank(_plan(path), 0).tensors
    assert one["lm_head.weight"].data_ptr() == one["embed_tokens.weight"].data_ptr()
    last = load_rank(_plan(path, ParallelLayout(2)), 1).tensors
    assert "embed_tokens.weight" not in last
    assert torch.equal(last["lm_head.weight"], one["embed_tokens.weight"])


def test_memory_that_is_there_already_is_filled_and_handed_back(tiny: Tiny) -> None:
    plan = _plan(tiny("glm-5.1-fp8"), ParallelLayout(1, 2))
    expected = load_rank(plan, 1).tensors
    own = {name: torch.empty_like(t) for name, t in expected.items()}
    loaded = load_rank(plan, 1, tensors={**own, "more": torch.zeros(1)})
    assert differences(own, expected) == []
    assert {n: t.data_ptr() for n, t in loaded.tensors.items()} == {n: t.data_ptr() for n, t in own.items()}


def test_a_part_of_the_parameters_is_loaded_without_the_rest(tiny: Tiny) -> None:
    plan = _plan(tiny("glm-5.1-fp8"), ParallelLayout(num_draft_layers=1))
    every = load_rank(plan, 0).tensors
    own = {n: torch.zeros_like(t) for n, t in every.items() if n.startswith(("layers.5.", "norm."))}
    loaded = load_rank(plan, 0, tensors=own)
    assert differences(own, {n: every[n] for n in own}) == []
    assert {s.name for s in loaded.specs} == own.keys()
    assert loaded.report.resident_bytes == sum(t.numel() * t.element_size() for t in own.values())
    assert loaded.report.fetched_bytes < plan.rank(0).fetched_bytes / 4


def test_progress_ends_at_the_bytes_of_the_plan(tiny: Tiny) -> None:
    plan = _plan(tiny("glm-5.1-fp8"), ParallelLayout(2, 2))
    for rank in range(4):
        done: list[int] = []
        loaded = load_rank(plan, rank, on_progress=done.append, staging_bytes=2**18)
        assert sum(done) == loaded.report.needed_bytes == plan.rank(rank).needed_bytes


def test_dtype_float32_casts_plain_weights_and_keeps_quantised_ones(tiny: Tiny) -> None:
    path = tiny("glm-5.1-fp8")
    tensors = load_rank(_plan(path, dtype="F32"), 0).tensors
    expected = Reference(path).params
    assert torch.equal(tensors["embed_tokens.weight"], expected["embed_tokens.weight"].float())
    assert tensors["layers.0.self_attn.o_proj.weight"].dtype == torch.float8_e4m3fn


def test_a_file_that_changed_since_it_was_planned_is_refused(tiny_copy: Tiny) -> None:
    path = tiny_copy("llama")
    plan = _plan(path)
    shard = next(path.glob("*.safetensors"))
    os.utime(shard, ns=(0, 0))
    with pytest.raises(LoadError, match=rf"rank 0: {shard.name} changed since it was planned"):
        load_rank(plan, 0)


def test_a_file_that_is_lost_is_named(tiny_copy: Tiny) -> None:
    path = tiny_copy("llama")
    plan = _plan(path)
    shard = next(path.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(LoadError, match=f"rank 0: {shard.name}"):
        load_rank(plan, 0)


class ShrinkingStore:
    """A store whose files are shorter than their stamps say."""

    def __init__(self, path: Path) -> None:
        from loadmaster.checkpoint import LocalStore

        self._store = LocalStore(path)
        self.stamp = self._store.stamp

    def readinto(self, name: str, start: int, buffers: list[memoryview]) -> None:
        raise LoadError(f"{name} ended early at byte {start}")


def test_a_short_read_names_file_tensor_and_rank(tiny: Tiny) -> None:
    path = tiny("llama")
    with pytest.raises(LoadError, match=r"rank 0: model-\S+: reading \S+ (to \S+ )?failed") as failed:
        load_rank(_plan(path), 0, store=ShrinkingStore(path))  # type: ignore[arg-type]
    assert "no part of the model was loaded" in str(failed.value.hint)


def test_a_plan_survives_json_and_loads_the_same(tiny: Tiny) -> None:
    plan = _plan(tiny("deepseek-v3.2"), ParallelLayout(2, 2, True, num_draft_layers=1))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert differences(load_rank(prove(again).require_proven(), 3).tensors, load_rank(plan, 3).tensors) == []
