"""How `generate` prints and reports answers, over an engine in this process that says "hey"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from loadmaster.cli.answers import Answer, answer_all, statistics_object
from loadmaster.engine import Engine, Statistics, Tokenizer
from loadmaster.engine.scheduler import Counters
from loadmaster.errors import RunError
from loadmaster.synth.tokenizer import write_tokenizer
from loadmaster.workers import SamplingParams
from loadmaster.workers.messages import Usage
from tests.server.fake import EOS, FakeEngine


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path, {"max_position_embeddings": 64, "eos_token_id": EOS})
    return Tokenizer(path)


def answers(tokenizer: Tokenizer, prompts: list[list[int]], *, n: int = 1, **options: Any) -> list[Answer]:
    engine, stop = options.pop("engine", FakeEngine(b"hey")), options.pop("stop", ())
    params = SamplingParams(**options)
    return answer_all(cast(Engine, engine), tokenizer, prompts, params, n, stop, show=True)


def test_one_answer_is_printed_without_a_heading(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    answers(tokenizer, [[5]])
    assert capsys.readouterr().out == "hey\n"


def test_several_answers_are_printed_in_order(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    answers(tokenizer, [[5], [6]], n=2, stop=["y"])
    assert capsys.readouterr().out == "".join(
        f"--- prompt {i} of 2, answer {j} of 2\nhe\n" for i in (1, 2) for j in (1, 2)
    )


def test_without_a_tokenizer_token_ids_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers(Tokenizer(tmp_path), [[5], [6]], max_tokens=2)
    assert capsys.readouterr().out == "--- prompt 1 of 2\n104 101 \n--- prompt 2 of 2\n104 101 \n"


def test_the_seeds_of_a_prompts_answers_follow_each_other(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(b"hey")
    answers(tokenizer, [[5], [6]], n=2, engine=engine, seed=7)
    assert [(prompt, params.seed) for prompt, params in engine.seen] == [([5], 7), ([5], 8), ([6], 7), ([6], 8)]


def test_an_engine_that_fails_ends_all(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(b"hey", fails_after=1, error=RunError("stage 0 of 1 was killed"))
    with pytest.raises(RunError, match="killed"):
        answers(tokenizer, [[5], [6]], engine=engine)


def test_log_probabilities_are_reported_with_text_and_rank(tokenizer: Tokenizer) -> None:
    [answer] = answers(tokenizer, [[97, 98]], max_tokens=1, logprobs=1, prompt_logprobs=0)
    likeliest = {"token_id": 97, "text": "a", "logprob": -97.0, "rank": 1}
    assert answer.as_json(tokenizer, SamplingParams(logprobs=1, prompt_logprobs=0)) == {
        "prompt_token_ids": [97, 98],
        "token_ids": [104],
        "text": "h",
        "finish_reason": "length",
        "logprobs": [{"token_id": 104, "text": "h", "logprob": -104.0, "rank": 9, "top": [likeliest]}],
        "prompt_logprobs": [None, {"token_id": 98, "text": "b", "logprob": -98.0, "rank": 9, "top": []}],
    }


def test_shares_of_a_stages_time_sum_to_one() -> None:
    statistics = Statistics(0, 0, 10, 0, 7, Counters(output_tokens=3), (Usage(0, 0, 1.0, 2.0, 5.0, 4, 9), Usage(1, 1)))
    written = statistics_object(statistics, block_size=16)
    busy, idle = written["stages"]
    assert (busy["busy_share"], busy["input_share"], busy["engine_share"]) == (0.125, 0.25, 0.625)
    assert (idle["busy_share"], idle["num_batches"]) == (0.0, 0)
    assert written["kv_cache"] == {"block_size": 16, "num_pages": 10, "num_tokens": 160, "most_used_pages": 7}
    assert written["output_tokens"] == 3


def test_how_many_drafts_were_right_is_reported_where_there_were_any() -> None:
    drafted = Counters(output_tokens=12, sampled_spans=5, drafted_tokens=10, accepted_tokens=7)
    for counters, expected in (
        (drafted, (0.7, 2.4)),
        (Counters(output_tokens=5, sampled_spans=5), (None, 1.0)),
        (Counters(), (None, None)),
    ):
        written = statistics_object(Statistics(0, 0, 10, 0, 7, counters, ()), block_size=16)
        assert (written["acceptance_rate"], written["tokens_per_step"]) == expected
