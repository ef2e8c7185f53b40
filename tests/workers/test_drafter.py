"""Drafts of real MTP layers: those of a slow reference, and answers that they do not change."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer

from loadmaster.engine.scheduler import Counters
from loadmaster.models import Stage
from loadmaster.workers.batch import Done
from loadmaster.workers.sampling_params import SamplingParams
from tests.engine.simulation import Client, step
from tests.models.draft_reference import DraftReference
from tests.models.planted import expected_counts, planted, written
from tests.workers.local import LocalWorkers, drafting_stages, scheduler

VOCAB = 320
PAGE = 4


def prompts() -> list[list[int]]:
    """Return prompts longer and shorter than the indexers select, two of which begin alike and go on differently."""
    random = Random(0)
    common = [random.randrange(VOCAB) for _ in range(12)]
    others = [[random.randrange(VOCAB) for _ in range(n)] for n in (20, 3)]
    return [[*common, 7, 8, 9], *others, [*common, 5]]


def run(
    stages: list[Stage],
    num_layers: int = 0,
    num_drafts: int = 0,
    *,
    num_pages: int = 64,
    max_num_batched_tokens: int = 7,
    given: list[list[int]] | None = None,
    num_tokens: int = 7,
    reference: DraftReference | None = None,
    **sampling: Any,
) -> tuple[list[list[int]], Counters]:
    """Answer the prompts, the last of them after the others, in chunks of a few tokens."""
    machine = scheduler(
        num_pages, PAGE, num_layers, num_drafts, num_places=len(stages), max_num_batched_tokens=max_num_batched_tokens
    )
    workers = LocalWorkers(stages, num_pages, PAGE, num_drafts)
    clients = {i: Client(i, prompt, num_tokens) for i, prompt in enumerate(given or prompts(), 1)}
    if sampling:
        for client in clients.values():
            client.request.params = SamplingParams(max_tokens=num_tokens, **sampling)
    if reference is not None:
        original = workers.next

        def checked() -> Done:
            done = original()
            for sampled in done.sampled:
                client = clients[sampled.request]
                known = [*client.prompt, *client.tokens, *sampled.token_ids]
                assert list(sampled.drafts) == reference.propose(known, len(sampled.drafts)), (
                    sampled.request,
                    len(known),
                )
            return done

        workers.next = checked  # type: ignore[method-assign]
    *first, last = clients.values()
    for client in first:
        machine.add(client.request)
    while step(machine, workers, clients):
        pass
    machine.add(last.request)
    while step(machine, workers, clients):
        pass
    return [c.tokens for c in clients.values()], machine.counters


@pytest.mark.parametrize(
    ("preset", "num_layers", "num_drafts", "overrides"),
    [
        ("deepseek-v3", 1, 3, {}),
        ("deepseek-v3", 3, 3, {"num_nextn_predict_layers": 3}),
        ("deepseek-v3.2", 1, 2, {}),
        ("glm-4.5-air", 1, 2, {}),
        ("glm-5.1-fp8", 1, 2, {}),
        ("glm-5.2-fp8", 1, 3, {"index_share_for_mtp_iteration": True}),
    ],
    ids=["v3", "three layers", "v3.2", "glm-4.5", "glm-5.1", "shared selection"],
)
def test_drafts_are_those_of_the_reference_in_chunks_after_preemptions_and_over_shared_pages(
    preset: str, num_layers: int, num_drafts: int, overrides: dict[str, Any], tmp_path: Path
) -> None:
    path = written(tmp_path / "stored", preset, **overrides)
    reference = DraftReference(path, tmp_path)
    stages = drafting_stages(path, (1, 1), num_layers)
    _, counters = run(stages, num_layers, num_drafts, num_pages=12, reference=reference)
    assert counters.drafted_tokens > 20
    assert counters.preemptions > 0
    assert counters.cached_tokens > 0


@pytest.mark.parametrize(
    ("preset", "partitions"),
    [("glm-5.1-fp8", {(4,): 1, (1, 3): 2}), ("deepseek-v3", {(1, 1, 1, 1): 3})],
    ids=["glm-5.1", "v3"],
)
def test_greedy_answers_are_those_without_drafts_at_any_number_of_stages(
    preset: str, partitions: dict[tuple[int, ...], int], tmp_path: Path
) -> None:
    path = written(tmp_path, preset, num_hidden_layers=4, indexer_types=["full"] * 4)
    expected, _ = run(drafting_stages(path, (4,)))
    for partition, num_drafts in partitions.items():
        tokens, counters = run(drafting_stages(path, partition), 1, num_drafts, num_pages=12)
        assert tokens == expected, partition
        assert counters.drafted_tokens > 0


def test_a_trained_layer_is_right_most_of_the_time() -> None:
    path = Path(__file__).parents[2] / "demo" / "glm"
    stages = drafting_stages(path, (2, 3))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    texts = "It is a truth universally acknowledged, that", "And the LORD spake unto Moses, saying,"
    given = [tokenizer.encode(text).ids for text in texts]
    expected, _ = run(stages, given=given, num_tokens=24)
    tokens, counters = run(stages, 1, 3, given=given, num_tokens=24, max_num_batched_tokens=32)
    assert tokens == expected
    assert (counters.acceptance_rate or 0) > 0.5
    assert (counters.tokens_per_step or 0) > 2


# A model whose drafts are known --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Stage], dict[int, int]]:
    path, follows = planted(tmp_path_factory.mktemp("planted"))
    return drafting_stages(path, (1, 1)), follows


@pytest.mark.parametrize("num_drafts", [1, 2, 5])
def test_as_many_drafts_are_accepted_as_are_right(known: tuple[list[Stage], dict[int, int]], num_drafts: int) -> None:
    stages, follows = known
    tokens, counters = run(stages, 1, num_drafts, max_num_batched_tokens=32)
    assert tokens == run(stages)[0]
    counts = [expected_counts(prompt, follows, 7, num_drafts) for prompt in prompts()]
    found = (counters.sampled_spans, counters.drafted_tokens, counters.accepted_tokens)
    assert found == tuple(map(sum, zip(*counts, strict=True)))
    assert (counters.acceptance_rate or 0) > 0.4
    assert (counters.tokens_per_step or 0) > 1.3


def test_sampled_answers_with_the_same_seed_are_those_without_drafts(
    known: tuple[list[Stage], dict[int, int]],
) -> None:
    stages, _ = known
    for seed in range(2):
        sampling = {"temperature": 0.8, "top_k": 3, "seed": seed}
        expected, _ = run(stages, **sampling)
        tokens, counters = run(stages, 1, 3, **sampling)
        assert tokens == expected
        assert 0 < counters.accepted_tokens < counters.drafted_tokens


def test_a_checkpoint_without_mtp_layers_drafts_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "deepseek-v3", num_nextn_predict_layers=0)
    assert json.loads((path / "config.json").read_text())["num_nextn_predict_layers"] == 0
    _, counters = run(drafting_stages(path, (2,), 0))
    assert counters.drafted_tokens == 0
