"""CUDA graphs give what the same steps give without them."""

from __future__ import annotations

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.group import PipelineGroup
from loadmaster.plan import build_plan, prove
from loadmaster.workers.batch import Batch, Span, Start
from loadmaster.workers.builder import PlanBuilder
from loadmaster.workers.decode_graphs import MIN_TABLE_WIDTH
from loadmaster.workers.messages import Allocate
from loadmaster.workers.runner import StageRunner
from loadmaster.workers.sampling_params import SamplingParams
from tests.conftest import Tiny

pytestmark = pytest.mark.gpu

PROMPTS = {1: [3, 17, 5, 9, 31], 2: [8], 3: [4] * 40}
NUM_TOKENS = MIN_TABLE_WIDTH + 20  # with pages of one token the tables grow, and the graphs are made anew


def answers(runner: StageRunner) -> dict[int, list[int]]:
    """Return the greedy answers of requests that begin and end at different steps."""
    tokens: dict[int, list[int]] = {r: list(prompt) for r, prompt in PROMPTS.items()}
    computed = dict.fromkeys(PROMPTS, 0)
    free = list(range(1000))
    for number in range(NUM_TOKENS):
        spans = []
        for request, known in tokens.items():
            if not 2 * request <= number < NUM_TOKENS - 3 * request:
                continue
            first = computed[request]
            start = Start(SamplingParams(temperature=0), tuple(known), len(known)) if first == 0 else None
            new = tuple(known[first:])
            pages = tuple(free.pop(number % 7) for _ in new)
            spans.append(Span(request, first, new, pages, 1, start))
            computed[request] = len(known)
        if spans:
            done = runner.run(Batch(number, tuple(spans)))
            assert done is not None
            for sampled in done.sampled:
                assert sampled.error is None
                tokens[sampled.request] += sampled.token_ids
    return tokens


@pytest.mark.parametrize(
    "preset",
    [
        "llama",
        "qwen2",
        "qwen3",
        "qwen3-fp8",
        "mistral",
        "phi-4",
        "olmo-3",
        "gemma-3",
        "granite-moe-shared",
        "glm-4.5-air",
        "mixtral",
        "qwen2-moe",
        "qwen3-moe",
        "qwen3-moe-fp8",
        "deepseek-v3",
        "glm-5.1-fp8",
        "glm-5.2-fp8",
    ],
)
def test_graphs_give_the_tokens_of_steps_without_them_and_of_the_cpu(preset: str, tiny: Tiny) -> None:
    plan = prove(build_plan(open_checkpoint(tiny(preset)), dtype="F32")).require_proven()
    stage = PlanBuilder(plan.to_json()).build(0, "cuda:0", lambda _: None)
    on_cpu = PlanBuilder(plan.to_json()).build(0, "cpu", lambda _: None)
    assert stage.is_capturable
    with torch.inference_mode():
        with_graphs = StageRunner(stage, PipelineGroup(0, 1), Allocate(1000, 1))
        without = StageRunner(stage, PipelineGroup(0, 1), Allocate(1000, 1))
        without._graphs = None
        assert with_graphs._graphs is not None
        expected = answers(StageRunner(on_cpu, PipelineGroup(0, 1), Allocate(1000, 1)))
        assert answers(without) == expected
        assert answers(with_graphs) == expected
        assert len(with_graphs._graphs._captured) >= 2
    assert len(expected[1]) > MIN_TABLE_WIDTH


@pytest.mark.parametrize("preset", ["gpt-oss-bf16"])
def test_stages_that_no_graph_can_repeat_give_the_tokens_of_the_cpu(preset: str, tiny: Tiny) -> None:
    plan = prove(build_plan(open_checkpoint(tiny(preset)), dtype="F32")).require_proven()
    built = [PlanBuilder(plan.to_json()).build(0, device, lambda _: None) for device in ("cpu", "cuda:0")]
    assert not built[1].is_capturable
    with torch.inference_mode():
        on_cpu, on_gpu = (StageRunner(stage, PipelineGroup(0, 1), Allocate(1000, 1)) for stage in built)
        assert answers(on_gpu) == answers(on_cpu)
