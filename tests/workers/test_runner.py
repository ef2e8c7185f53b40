"""A stage's runner: page tables, rows of logits, and the logprobs of prompts, over the toy model."""

import torch

from loadmaster.distributed.group import PipelineGroup
from loadmaster.workers.batch import Batch, Span, Start
from loadmaster.workers.messages import Allocate
from loadmaster.workers.runner import StageRunner
from loadmaster.workers.sampling_params import SamplingParams
from tests.workers.toy import ToyStage


def runner() -> StageRunner:
    return StageRunner(ToyStage(0, 1, ""), PipelineGroup(0, 1), Allocate(8, 2))


def begin(*prompt: int, **params: int) -> Start:
    return Start(SamplingParams(temperature=0, **params), prompt, len(prompt))


def test_each_span_has_the_tokens_that_follow_its_own() -> None:
    run = runner().run
    with torch.inference_mode():
        done = run(Batch(1, (Span(1, 0, (3, 4), (5,), 1, begin(3, 4)), Span(2, 0, (9,), (0,), 1, begin(9)))))
        assert done is not None
        assert [(s.request, s.token_ids) for s in done.sampled] == [(1, (5,)), (2, (10,))]
        done = run(Batch(2, (Span(2, 1, (10,), (), 1), Span(1, 2, (5,), (2,), 1))))
        assert done is not None
        assert [(s.request, s.token_ids) for s in done.sampled] == [(2, (11,)), (1, (6,))]


def test_drafts_are_accepted_up_to_the_first_that_is_wrong() -> None:
    run = runner().run
    with torch.inference_mode():
        run(Batch(1, (Span(1, 0, (3,), (0,), 1, begin(3)),)))
        done = run(Batch(2, (Span(1, 1, (4, 5, 9, 7), (1, 2), 4),)))
    assert done is not None
    assert done.sampled[0].token_ids == (5, 6)


def test_logprobs_of_a_prompt_come_with_each_of_its_chunks() -> None:
    run = runner().run
    prompt = (3, 4, 9, 10, 11)
    with torch.inference_mode():
        scored = Span(1, 0, prompt[:2], (0,), 0, begin(*prompt, prompt_logprobs=0))
        first = run(Batch(1, (scored, Span(2, 0, (7,), (4,), 1, begin(7)))))
        second = run(Batch(2, (Span(1, 2, prompt[2:], (1, 2), 1),)))
    assert first is not None
    assert second is not None
    other, scores = first.sampled
    assert (other.request, other.token_ids, other.prompt_logprobs) == (2, (8,), ())
    assert [(s.chosen.token_id, s.chosen.rank == 1) for s in scores.prompt_logprobs] == [(4, True), (9, False)]
    assert [(s.chosen.token_id, s.chosen.rank == 1) for s in second.sampled[0].prompt_logprobs] == [
        (10, True),
        (11, True),
    ]
    assert second.sampled[0].token_ids == (12,)
