"""Stages and tensor-parallel ranks on GPUs give the tokens of one process on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Engine
from loadmaster.engine.tokenizer import Tokenizer
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers import SamplingParams
from tests.conftest import Tiny
from tests.models.pipeline import Pipeline, stages

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

PROMPTS = [[7, 250, 31, 99, 14, 3, 200, 180, 66, 45, 12, 301, 77, 5, 5, 41, 260, 19, 130, 8], [3, 17, 5], [9] * 11]
TRAINED = Path(__file__).parents[2] / "demo" / "glm"
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


SENTENCES = ["And the king said unto", "Blessed is the man that walketh not in", "In the beginning"]


@pytest.fixture(scope="module")
def trained() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts for the trained model, and what it answers in one process on the CPU."""
    tokenizer = Tokenizer(TRAINED)
    prompts = [tokenizer.encode(sentence) for sentence in SENTENCES]
    built = stages(TRAINED, (5,))
    return prompts, [Pipeline(built).greedy(prompt, 32) for prompt in prompts]


@two_gpus
@pytest.mark.parametrize("num_drafts", [0, 1, 3])
@pytest.mark.parametrize(
    "layout",
    [(2, 1, False), (1, 2, False), (1, 2, True), (2, 2, False), (2, 2, True)],
    ids=lambda x: f"pp{x[0]}-tp{x[1]}{'-ep' if x[2] else ''}",
)
def test_the_trained_model_answers_as_on_the_cpu(
    layout: tuple[int, int, bool], num_drafts: int, trained: tuple[list[list[int]], list[list[int]]]
) -> None:
    prompts, expected = trained
    num_stages, num_ranks, experts = layout
    parallel = ParallelLayout(
        num_stages, num_ranks, enable_expert_parallel=experts, num_draft_layers=min(num_drafts, 1)
    )
    plan = prove(build_plan(open_checkpoint(TRAINED), parallel, dtype="F32")).require_proven()
    params = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
    with Engine(plan, device="cuda", max_model_len=64, num_speculative_tokens=num_drafts or None) as engine:
        streams = [engine.submit(prompt, params) for prompt in prompts]
        assert [[t for output in stream for t in output.token_ids] for stream in streams] == expected
        assert (engine.statistics().counters.accepted_tokens > 20) == (num_drafts > 0)
