"""Tensor-parallel ranks as real processes: the tokens of one process, and errors that name the rank."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.errors import LoadError, RunError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers import SamplingParams, process
from tests.conftest import Tiny
from tests.distributed.test_group import listening
from tests.models.pipeline import Pipeline, stages
from tests.workers.toy import BUILDER, BYTES_A_STAGE, ToyPlan, continuation

if TYPE_CHECKING:
    from pathlib import Path

    from loadmaster.plan import Plan

pytestmark = pytest.mark.usefixtures("forked_workers")
PROMPTS = [[7, 250, 31, 99, 14, 3, 200, 180, 66, 45, 12, 301, 77, 5, 5, 41, 260, 19, 130, 8], [3, 17, 5], [9] * 11]


def test_two_stages_of_two_ranks_that_draft_give_the_tokens_of_one_process(tiny: Tiny) -> None:
    """Experts are dealt out. All ranks of the last stage sample and draft, and must agree on every token."""
    path = tiny("glm-5.2-fp8")
    expected = [Pipeline(stages(path, (8,))).greedy(prompt, 8) for prompt in PROMPTS]
    layout = ParallelLayout(2, 2, enable_expert_parallel=True, num_draft_layers=1)
    plan = prove(build_plan(open_checkpoint(path), layout, dtype="F32")).require_proven()
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    with Engine(
        plan, max_model_len=64, capacity=Capacity(max_num_batched_tokens=12), num_speculative_tokens=2
    ) as engine:
        streams = [engine.submit(prompt, params) for prompt in PROMPTS]
        assert [[t for output in stream for t in output.token_ids] for stream in streams] == expected
        statistics = engine.statistics()
    assert statistics.counters.drafted_tokens > 0
    assert [(u.rank, u.stage) for u in statistics.stages] == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_ranks_answer_once_listen_nowhere_and_errors_name_the_rank() -> None:
    plan = cast("Plan", ToyPlan(1, 2, faults={1: "step_raises"}))
    with Engine(plan, builder=BUILDER) as engine:
        engine.wait_ready()
        assert engine.progress() == (2 * BYTES_A_STAGE, 2 * BYTES_A_STAGE)
        assert listening([worker.running.pid for worker in engine._supervisor._workers]) == set()
        answer = engine.generate([3, 4, 5], SamplingParams(max_tokens=4, temperature=0))
        assert next(answer) == continuation([3, 4, 5], 1, 1)[0]
        with pytest.raises(RunError) as caught:
            list(answer)
        assert re.search(
            r"^rank 1 \(stage 0 of 1, tensor-parallel rank 1 of 2\): ValueError: a bug \(toy.py:\d+\)$",
            str(caught.value),
        )


def test_the_rank_that_hangs_is_named_and_not_the_one_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(process, "HUNG_FOR_S", 0.5)
    with (
        Engine(cast("Plan", ToyPlan(1, 2, faults={1: "step_hangs"})), builder=BUILDER) as engine,
        pytest.raises(RunError, match=r"^rank 1 \(stage 0 of 1, tensor-parallel rank 1 of 2\) .* has hung in a step"),
    ):
        list(engine.generate([3], SamplingParams(max_tokens=4, temperature=0)))


def test_ranks_of_a_stage_that_planned_differently_read_nothing(tmp_path: Path) -> None:
    plan = cast("Plan", ToyPlan(1, 2, disagree=str(tmp_path / "mark")))
    with Engine(plan, builder=BUILDER) as engine:
        with pytest.raises(LoadError, match=r"have different plans: [ab]{16} on rank 0, [ab]{16} on rank 1"):
            engine.wait_ready()
        assert engine.progress()[0] == 0
