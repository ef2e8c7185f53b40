"""Stages on GPUs answer as they do on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.engine.tokenizer import Tokenizer
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.workers import SamplingParams
from tests.models.pipeline import Pipeline, stages

pytestmark = pytest.mark.gpu

TRAINED = Path(__file__).parents[2] / "demo" / "glm"
SENTENCE = "And the king said unto them, Blessed is the man that walketh not in the counsel of the ungodly. "


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


@pytest.mark.parametrize("preset", ["llama", "qwen3", "mistral", "smollm2"])
def test_requests_that_are_computed_together_have_the_tokens_that_each_has_alone_on_the_cpu(
    preset: str, tmp_path: Path
) -> None:
    write_tiny(PRESETS[preset], tmp_path)
    plan = prove(build_plan(open_checkpoint(tmp_path), dtype="F32")).require_proven()
    prompts = [[(7 * i + j * j) % 300 for j in range(length)] for i, length in enumerate((1, 15, 16, 17, 90, 3, 33))]
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    with Engine(plan) as engine:
        alone = [list(engine.generate(prompt, params)) for prompt in prompts]
    with Engine(plan, device="cuda", capacity=Capacity(max_num_batched_tokens=40)) as engine:
        streams = [engine.submit(prompt, params) for prompt in prompts]
        together = [[token for output in stream for token in output.token_ids] for stream in streams]
    assert together == alone


@pytest.fixture(scope="module")
def trained() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts for the trained model, one longer than its indexer selects, and what it answers on the CPU."""
    tokenizer = Tokenizer(TRAINED)
    prompts = [tokenizer.encode(text) for text in (4 * SENTENCE, SENTENCE, "In the beginning")]
    assert len(prompts[0]) > 64
    built = stages(TRAINED, (5,))
    return prompts, [Pipeline(built, num_pages=64).greedy(prompt, 24) for prompt in prompts]


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_the_trained_model_selects_tokens_as_on_the_cpu(
    num_drafts: int, trained: tuple[list[list[int]], list[list[int]]]
) -> None:
    prompts, expected = trained
    layout = ParallelLayout(1, num_draft_layers=min(num_drafts, 1))
    plan = prove(build_plan(open_checkpoint(TRAINED), layout, dtype="F32")).require_proven()
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    with Engine(plan, device="cuda", num_speculative_tokens=num_drafts or None) as engine:
        streams = [engine.submit(prompt, params) for prompt in prompts]
        assert [[t for output in stream for t in output.token_ids] for stream in streams] == expected
