"""Structured outputs in real processes: stages, ranks of a stage, and drafts give the same answers, all of them valid.

While a grammar is compiled, here by the toy model's slow compiler, other requests go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine, Tokenizer
from loadmaster.errors import RequestError, RunError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers import SamplingParams, StructuredOutputs
from loadmaster.workers.structured_outputs import Grammar
from tests.engine.test_engine import nothing_left
from tests.models.planted import written
from tests.workers.toy import BUILDER, ToyPlan, continuation

if TYPE_CHECKING:
    from loadmaster.engine import Stream
    from loadmaster.plan import ProvenPlan

pytestmark = pytest.mark.usefixtures("forked_workers")
GREEDY = SamplingParams(max_tokens=4, temperature=0)

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


@pytest.mark.slow
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


@contextmanager
def slow_compiler(gates: Path) -> Iterator[Engine]:
    """An engine of one stage with two ranks, which compile a grammar when its gates are open."""
    plan = cast("ProvenPlan", ToyPlan(1, 2, gates=str(gates)))
    with nothing_left(), Engine(plan, builder=BUILDER) as engine:
        engine.wait_ready()
        yield engine


def submit(engine: Engine, grammar: str, prompt: int = 3) -> Stream:
    return engine.submit([prompt], replace(GREEDY, structured_outputs=Grammar(grammar)))


def tokens(stream: Stream) -> list[int]:
    return [token for output in stream for token in output.token_ids]


def test_requests_wait_alone_for_their_grammar_and_end_alone_if_it_is_wrong(tmp_path: Path) -> None:
    with slow_compiler(tmp_path) as engine:
        first, second = submit(engine, "slow"), submit(engine, "slow", 5)
        for rank in (0, 1):
            assert list(engine.generate([7], GREEDY)) == continuation([7], 1, 4)
            assert (engine.statistics().num_waiting, engine.num_queued()) == (2, 0)
            (tmp_path / f"slow-{rank}").touch()
        assert tokens(first) == continuation([3], 1, 4)
        assert tokens(second) == continuation([5], 1, 4)
        assert tokens(submit(engine, "slow", 9)) == continuation([9], 1, 4)
        assert engine.statistics().num_waiting == 0

        streams = [submit(engine, "wrong"), submit(engine, "wrong")]
        free = engine.submit([3], GREEDY)
        for rank in (0, 1):
            (tmp_path / f"wrong-{rank}").touch()
            (tmp_path / f"right-{rank}").touch()
        for stream in streams:
            with pytest.raises(RequestError, match="the grammar is wrong"):
                list(stream)
        assert tokens(free) == continuation([3], 1, 4)
        assert tokens(submit(engine, "right")) == continuation([3], 1, 4)
        assert engine.statistics().num_waiting == 0


def test_a_request_can_be_cancelled_and_the_engine_closed_while_a_grammar_is_compiled(tmp_path: Path) -> None:
    with slow_compiler(tmp_path) as engine:
        given_up, waiting = submit(engine, "slow"), submit(engine, "slow")
        list(engine.generate([7], GREEDY))
        given_up.cancel()
        assert list(given_up) == []
        list(engine.generate([7], GREEDY))
        assert engine.statistics().num_waiting == 1
    with pytest.raises(RunError, match="closed"):
        list(waiting)
