"""Speculative decoding with MTP in real processes, and what is refused before any is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.cli.main import main
from loadmaster.engine import Capacity, Engine, speculative_tokens
from loadmaster.engine.support import num_drafts
from loadmaster.errors import ArgumentError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from loadmaster.workers import SamplingParams
from tests.models.planted import expected_counts, planted

pytestmark = pytest.mark.usefixtures("forked_workers")
PROMPTS = [[1, 2, 3], list(range(20)), [5, 11]]


def proven(path: Path, layout: ParallelLayout) -> ProvenPlan:
    return prove(build_plan(open_checkpoint(path), layout, dtype="F32")).require_proven()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, int]]:
    return planted(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize(
    "layout",
    [ParallelLayout(2, num_draft_layers=1), ParallelLayout(1, 2, num_draft_layers=1)],
    ids=["two stages", "a stage of two ranks"],
)
def test_processes_draft_and_count_what_is_right(layout: ParallelLayout, known: tuple[Path, dict[int, int]]) -> None:
    path, follows = known
    capacity = Capacity(max_num_batched_tokens=16, block_size=4)
    with Engine(proven(path, layout), capacity=capacity, num_speculative_tokens=3) as engine:
        streams = [engine.submit(p, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)) for p in PROMPTS]
        for prompt, stream in zip(PROMPTS, streams, strict=True):
            tokens = [prompt[-1], *(t for output in stream for t in output.token_ids)]
            assert tokens[1:] == [follows[t] for t in tokens[:-1]]
            assert len(tokens) == 13
        counters = engine.statistics().counters
    counts = [expected_counts(prompt, follows, 12, 3) for prompt in PROMPTS]
    found = (counters.sampled_spans, counters.drafted_tokens, counters.accepted_tokens)
    assert found == tuple(map(sum, zip(*counts, strict=True)))
    assert counters.output_tokens == 36
    assert counters.accepted_tokens > 10


def test_drafts_without_mtp_layers_are_refused(known: tuple[Path, dict[int, int]]) -> None:
    with pytest.raises(ArgumentError, match="num_speculative_tokens is 2, and the plan has no MTP layer"):
        Engine(proven(known[0], ParallelLayout()), num_speculative_tokens=2)


def test_one_layer_drafts_any_number_and_several_one_each() -> None:
    assert [num_drafts(0, None), num_drafts(1, None), num_drafts(3, None)] == [0, 1, 3]
    assert [num_drafts(1, 7), num_drafts(3, 2), num_drafts(3, 3)] == [7, 2, 3]
    with pytest.raises(UnsupportedError, match="4, and the model's 3 MTP layers propose one token each"):
        num_drafts(3, 4)
    with pytest.raises(ArgumentError, match="num_speculative_tokens"):
        num_drafts(1, 0)


def test_the_option_names_the_number_of_drafts_or_leaves_it_to_the_model() -> None:
    assert speculative_tokens(None) is None
    assert speculative_tokens({"method": "mtp"}) is None
    assert speculative_tokens({"method": "deepseek_mtp", "num_speculative_tokens": 4}) == 4


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the command line asks the engine for, instead of an engine."""
    given: dict[str, Any] = {}

    def engine(plan: ProvenPlan, **options: Any) -> Engine:
        given.update(options, num_draft_layers=plan.layout.num_draft_layers)
        raise UnsupportedError("not here")

    monkeypatch.setattr("loadmaster.engine.Engine", engine)
    yield given


@pytest.mark.parametrize(
    ("config", "num_layers", "num_tokens"),
    [
        ('{"method": "mtp"}', 1, None),
        ('{"method": "mtp", "num_speculative_tokens": 3}', 1, 3),
        (None, 0, None),
    ],
)
def test_generate_passes_the_option_on(
    config: str | None, num_layers: int, num_tokens: int | None, asked: dict[str, Any], known: tuple[Path, Any]
) -> None:
    given = [] if config is None else ["--speculative-config", config]
    assert main(["generate", str(known[0]), "--prompt-token-ids", "3", *given]) == 1
    assert (asked["num_draft_layers"], asked["num_speculative_tokens"]) == (num_layers, num_tokens)
