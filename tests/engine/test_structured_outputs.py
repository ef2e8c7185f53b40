"""Structured outputs in real processes: stages, ranks of a stage, and drafts give the same answers, all of them valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine, Tokenizer
from loadmaster.errors import RequestError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers import SamplingParams, StructuredOutputs
from tests.models.planted import written

WANTED = [
    StructuredOutputs(regex=r"[a-z]{3}-\d{2}(,[a-z]{3}-\d{2}){0,2}"),
    StructuredOutputs(choice=["yes", "no", "perhaps"]),
    StructuredOutputs(json={"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, disable_any_whitespace=True),
]
PROMPTS = [[1, 2, 3], [5, 11], list(range(20))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model"), "deepseek-v3")


def answers(path: Path, layout: ParallelLayout, num_drafts: int | None) -> tuple[list[tuple[str, str | None]], int]:
    """Return texts and finish reasons, greedy and sampled, and the number of drafts that were accepted."""
    plan = prove(build_plan(open_checkpoint(path), layout, dtype="F32")).require_proven()
    tokenizer = Tokenizer(path)
    capacity = Capacity(
        max_num_batched_tokens=16, block_size=4, num_gpu_blocks_override=20
    )  # too few pages for all: preemptions
    with Engine(plan, max_model_len=64, capacity=capacity, num_speculative_tokens=num_drafts) as engine:
        engine.learn(tokenizer.vocabulary())
        streams = [
            engine.submit(prompt, SamplingParams(28, temperature=temperature, seed=7, structured_outputs=wanted))
            for prompt, wanted in zip(PROMPTS, WANTED, strict=True)
            for temperature in (0, 1.5)
        ]
        outputs = [list(stream) for stream in streams]
        with pytest.raises(RequestError, match="no answer matches it"):
            engine.submit([1], SamplingParams(structured_outputs=StructuredOutputs(regex=r"[^\s\S]")))
        accepted = engine.statistics().counters.accepted_tokens
    return [
        (tokenizer.decode([t for output in each for t in output.token_ids]), each[-1].finish_reason) for each in outputs
    ], accepted


def test_stages_ranks_and_drafts_do_not_change_the_answers(path: Path) -> None:
    alone, _ = answers(path, ParallelLayout(), None)
    for (text, reason), wanted in zip(alone, [w for w in WANTED for _ in range(2)], strict=True):
        assert reason == "stop"
        if wanted.regex:
            assert re.fullmatch(wanted.regex, text, re.ASCII)
        elif wanted.choice:
            assert text in wanted.choice
        else:
            assert all(isinstance(x, bool) for x in json.loads(text))
    for layout in (ParallelLayout(2, num_draft_layers=1), ParallelLayout(1, 2, num_draft_layers=1)):
        assert answers(path, layout, 3)[0] == alone
