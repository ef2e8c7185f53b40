from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from loadmaster.workers.penalties import Change, TokenCounts, changed
from loadmaster.workers.sampling_params import SamplingParams
from tests.workers.plain_sampler import Driver, plain_logits

PROMPT, ANSWER = [4, 9, 4, 30], [9, 17, 17, 17]


def one_row(
    logits_V: torch.Tensor, params: SamplingParams, answer: list[int] = ANSWER, drafts: tuple[int, ...] = ()
) -> torch.Tensor:
    change = Change(0, params, None, TokenCounts(PROMPT, answer).after(drafts))
    return changed(logits_V[None], [change])[0]


@pytest.fixture(name="logits_V")
def some_logits() -> torch.Tensor:
    return torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float, logits_V: torch.Tensor) -> None:
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([PROMPT + ANSWER]), logits_V[None].clone())[0]
    torch.testing.assert_close(one_row(logits_V, SamplingParams(repetition_penalty=penalty)), expected)


def test_presence_and_frequency_count_the_answer_alone(logits_V: torch.Tensor) -> None:
    result = one_row(logits_V, SamplingParams(presence_penalty=0.5, frequency_penalty=0.25))
    less = torch.zeros(40)
    less[9], less[17] = 0.5 + 0.25, 0.5 + 3 * 0.25
    torch.testing.assert_close(result, logits_V - less)


def test_all_changes_together_have_the_order_of_vllm(logits_V: torch.Tensor) -> None:
    params = SamplingParams(
        repetition_penalty=1.4,
        presence_penalty=-0.5,
        frequency_penalty=0.7,
        logit_bias={9: -20, 17: 20, 3: 5.5},
        stop_token_ids=(30,),
        min_tokens=5,
    )
    change = Change(0, params, torch.tensor([2, 30]).numpy(), TokenCounts(PROMPT, ANSWER).after(()))
    expected = plain_logits(logits_V.tolist(), params, PROMPT, ANSWER, ends=(2,))
    torch.testing.assert_close(changed(logits_V[None], [change])[0], torch.tensor(expected))
    assert expected[2] == expected[30] == -math.inf


def test_drafts_count_as_if_they_were_in_the_answer(logits_V: torch.Tensor) -> None:
    params = SamplingParams(repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.7)
    for drafts in ((), (17,), (5,), (5, 9, 5, 30), (6, 5, 6)):
        assert torch.equal(one_row(logits_V, params, drafts=drafts), one_row(logits_V, params, [*ANSWER, *drafts]))


def test_counts_grow_as_if_they_were_counted_again() -> None:
    rng = random.Random(0)
    prompt = [rng.randrange(300) for _ in range(40)]
    counts, answer = TokenCounts(prompt, []), []
    for _ in range(60):
        new = [rng.randrange(300) for _ in range(rng.randint(1, 5))]
        counts.after(new)  # leaves no trace
        counts.add(new)
        answer += new
        token_ids, numbers = counts.after(())
        assert len(set(token_ids.tolist())) == len(token_ids)
        assert dict(zip(token_ids.tolist(), numbers.tolist(), strict=True)) == {
            token: answer.count(token) for token in {*prompt, *answer}
        }


def test_each_row_has_its_own_changes() -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(1))
    one = Change(1, SamplingParams(presence_penalty=1), None, TokenCounts([], [3]).after(()))
    two = Change(3, SamplingParams(logit_bias={3: 2}), None, None)
    result = changed(logits, [one, two])
    assert torch.equal(result[[0, 2]], logits[[0, 2]])
    assert (result[1] - logits[1]).nonzero().flatten().tolist() == [3]
    assert result[3, 3] == logits[3, 3] + 2


def test_end_tokens_wait_for_min_tokens() -> None:
    driver, logits = Driver(10, [4]), torch.zeros(1, 10)
    logits[0, [4, 5, 6]] = torch.tensor([3.0, 2, 1])
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(5,), ignore_eos=True)
    driver.begin(0, params, [4])
    for _ in range(3):
        driver.step(logits, [0])
    assert driver.tokens[0] == [4, 6, 6, 4]


def test_a_bias_of_100_decides() -> None:
    driver = Driver(50)
    driver.begin(0, SamplingParams(logit_bias={8: 100}), [0])
    driver.begin(1, SamplingParams(logit_bias=dict.fromkeys(range(49), -100)), [0])
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    assert [s.token_ids for s in driver.step(logits, [0, 1])] == [(8,), (49,)]
