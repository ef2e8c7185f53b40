from __future__ import annotations

import math

import pytest
import torch

from loadmaster.workers.batch import PositionLogprobs, Span, Start
from loadmaster.workers.sampler import Sampler
from loadmaster.workers.sampling_params import SamplingParams
from tests.workers.plain_sampler import Driver


def expected_logprobs(logits_V: torch.Tensor, token: int, num_top: int) -> tuple[list[int], list[float], int]:
    """The likeliest tokens, log probabilities of ``token`` and of those, and the rank of ``token``."""
    logprobs = torch.log_softmax(logits_V.double(), -1).tolist()
    order = sorted(range(len(logprobs)), key=lambda t: (-float(logits_V[t]), t))
    return order[:num_top], [logprobs[token], *(logprobs[t] for t in order[:num_top])], order.index(token) + 1


def check(position: PositionLogprobs, logits_V: torch.Tensor, token: int, num_top: int) -> None:
    ids, logprobs, rank = expected_logprobs(logits_V, token, num_top)
    assert [t.token_id for t in position.top] == ids
    assert [t.rank for t in position.top] == [*range(1, len(ids) + 1)]
    assert (position.chosen.token_id, position.chosen.rank) == (token, rank)
    assert [position.chosen.logprob, *(t.logprob for t in position.top)] == pytest.approx(logprobs, abs=1e-9)


def some_logits(num_rows: int, vocab_size: int = 300) -> torch.Tensor:
    """Logits with many equal ones, and some of minus infinity."""
    logits = (torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 4).round() / 2
    logits[:, 11] = -math.inf
    return logits.bfloat16()


def test_logprobs_are_of_the_raw_logits_and_as_many_as_asked_for() -> None:
    driver, logits = Driver(300), some_logits(4)
    for request, num_top in enumerate((0, 3, None, 20)):
        driver.begin(request, SamplingParams(temperature=3, logprobs=num_top, seed=1, presence_penalty=2), [5], [6])
    for sampled, row, num_top in zip(driver.step(logits, [*range(4)]), logits, (0, 3, None, 20), strict=True):
        if num_top is None:
            assert sampled.logprobs == ()
        else:
            check(sampled.logprobs[0], row, sampled.token_ids[0], num_top)


def test_the_likeliest_token_has_rank_1_also_among_equals() -> None:
    driver = Driver(300)
    driver.begin(0, SamplingParams(temperature=0, logprobs=2), [5])
    position = driver.step(torch.zeros(1, 300), [0])[0].logprobs[0]
    assert position.chosen == position.top[0]
    assert position.chosen.logprob == pytest.approx(-math.log(300))


def test_zeros_of_both_signs_are_equal() -> None:
    driver = Driver(4)
    driver.begin(0, SamplingParams(temperature=0, logprobs=4), [0])
    position = driver.step(torch.tensor([[-0.0, 0.0, -1.0, -0.0]]), [0])[0].logprobs[0]
    assert [t.token_id for t in position.top] == [0, 1, 3, 2]
    assert position.chosen == position.top[0]


def test_no_more_tokens_than_the_vocabulary_has() -> None:
    driver = Driver(3)
    driver.begin(0, SamplingParams(logprobs=20, seed=1), [0])
    driver.begin(1, SamplingParams(logprobs=2, seed=1), [0])
    assert [len(s.logprobs[0].top) for s in driver.step(torch.zeros(2, 3), [0, 1])] == [3, 2]


@pytest.mark.parametrize("num_top", [0, 4])
def test_prompt_logprobs_are_those_of_the_tokens_that_follow(num_top: int) -> None:
    """A prompt of 7 tokens, then 2 of an answer that is computed again, in chunks of 3."""
    tokens, logits = (1, 250, 3, 250, 11, 4, 9, 8, 8), some_logits(9)
    sampler = Sampler(300)
    sampler.begin(0, Start(SamplingParams(prompt_logprobs=num_top), tokens, 7))
    positions = []
    for first in (0, 3, 6):
        span = Span(0, first, tokens[first : first + 3])
        positions += sampler.prompt_logprobs(logits[first : first + 3], span).prompt_logprobs
    assert len(positions) == 6
    for i, position in enumerate(positions):
        check(position, logits[i], tokens[i + 1], num_top)
    assert positions[3].chosen.logprob == -math.inf and positions[3].chosen.rank == 300


def test_nan_in_a_prompts_logits_is_an_error() -> None:
    sampler, logits = Sampler(300), some_logits(3)
    logits[1, 2] = math.nan
    sampler.begin(0, Start(SamplingParams(prompt_logprobs=1), (1, 2, 3), 3))
    sampled = sampler.prompt_logprobs(logits, Span(0, 0, (1, 2, 3)))
    assert sampled.prompt_logprobs == () and "NaN" in str(sampled.error)
