"""Stages and tensor-parallel ranks on GPUs give the tokens of one process on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers import SamplingParams
from tests.conftest import Tiny
from tests.models.pipeline import Pipeline, stages

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

PROMPTS = [[7, 250, 31, 99, 14, 3, 200, 180, 66, 45, 12, 301, 77, 5, 5, 41, 260, 19, 130, 8], [3, 17, 5], [9] * 11]
LAYERS = {"glm-5.2-fp8": 8, "llama": 4, "gpt-oss-bf16": 4}


def check(path: Path, layout: ParallelLayout, num_layers: int) -> None:
    expected = [Pipeline(stages(path, (num_layers,))).greedy(prompt, 12) for prompt in PROMPTS]
    plan = prove(build_plan(open_checkpoint(path), layout, dtype="F32")).require_proven()
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with Engine(plan, device="cuda", max_model_len=64) as engine:
        streams = [engine.submit(prompt, params) for prompt in PROMPTS]
        assert [[t for output in stream for t in output.token_ids] for stream in streams] == expected


@two_gpus
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", ParallelLayout(1, 2)),
        ("gpt-oss-bf16", ParallelLayout(1, 2)),
        ("glm-5.2-fp8", ParallelLayout(2, 1)),
        ("glm-5.2-fp8", ParallelLayout(1, 2)),
        ("glm-5.2-fp8", ParallelLayout(2, 2, enable_expert_parallel=True)),
    ],
    ids=lambda x: x if isinstance(x, str) else f"pp{x.pipeline_parallel_size}-tp{x.tensor_parallel_size}",
)
def test_the_same_tokens_as_on_the_cpu(family: str, layout: ParallelLayout, tiny: Tiny) -> None:
    check(tiny(family), layout, LAYERS[family])


def test_ranks_that_share_a_gpu_add_up_through_the_host(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    check(tiny("glm-5.2-fp8"), ParallelLayout(1, 2), LAYERS["glm-5.2-fp8"])
