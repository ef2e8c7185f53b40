"""Stages on GPUs answer as they do on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.workers import SamplingParams

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "llama"])
def test_the_same_tokens_as_on_the_cpu(preset: str, num_stages: int, tmp_path: Path) -> None:
    write_tiny(PRESETS[preset], tmp_path)
    layout = ParallelLayout(pipeline_parallel_size=num_stages)
    plan = prove(build_plan(open_checkpoint(tmp_path), layout, dtype="F32")).require_proven()
    answers = {}
    for device in ("cpu", "cuda"):
        with Engine(plan, device=device) as engine:
            params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
            answers[device] = list(engine.generate([3, 17, 5, 9, 31], params))
    assert len(answers["cuda"]) == 16
    assert answers["cuda"] == answers["cpu"]
