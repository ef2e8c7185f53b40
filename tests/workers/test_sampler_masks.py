"""Tokens that may not come: other than the allowed ones, and the ends of bad words. Compared with transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import NoBadWordsLogitsProcessor

from loadmaster.errors import RequestError
from loadmaster.workers.masks import TokenMask
from loadmaster.workers.sampling_params import MAX_BAD_WORDS, SamplingParams, check_vocabulary
from tests.workers.plain_sampler import Driver, plain_token

VOCAB = 12
WORDS = ((3,), (1, 2), (2, 2, 2), (5, 1, 2, 4))


def logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("answer", [[], [1], [2, 2], [7, 2, 2], [5, 1, 2], [1, 2, 2], [2, 5, 1, 2], [2]])
def test_the_last_token_of_a_bad_word_is_masked_as_in_transformers(answer: list[int]) -> None:
    processor = NoBadWordsLogitsProcessor([list(word) for word in WORDS], eos_token_id=VOCAB - 1)
    expected = processor(torch.tensor([[9, *answer]]), torch.zeros(1, VOCAB))[0]
    for known in range(len(answer) + 1):  # the others are drafts
        mask = TokenMask(SamplingParams(bad_words_token_ids=WORDS), torch.tensor([], dtype=torch.int64).numpy(), [])
        for token in answer[:known]:
            mask.accept([token])
        masked = mask.after(answer[known:])
        assert masked is not None
        assert set(masked.tolist()) == {t for t in range(VOCAB) if expected[t] == -torch.inf}


def test_requests_with_masks_are_sampled_beside_others() -> None:
    every = [
        SamplingParams(temperature=0),
        SamplingParams(allowed_token_ids=(7, 3, 3, 5), seed=1),
        SamplingParams(temperature=0, allowed_token_ids=(2, 1, 8), bad_words_token_ids=WORDS),
        SamplingParams(bad_words_token_ids=WORDS, seed=4, logit_bias={3: 100, 2: 5, 1: 5}, presence_penalty=-1),
        SamplingParams(allowed_token_ids=(0, 11), min_tokens=30, max_tokens=30, temperature=0),
    ]
    driver, expected = Driver(VOCAB, [11]), [[i] for i in range(len(every))]
    for i, params in enumerate(every):
        driver.begin(i, params, [i])
    for step in range(20):
        rows = torch.stack([logits(100 * step + i) for i in range(len(every))])
        driver.step(rows, range(len(every)))
        for i, params in enumerate(every):
            expected[i].append(plain_token(rows[i].tolist(), params, [i], expected[i][1:], [11]))
    assert [driver.tokens[i] for i in range(len(every))] == expected
    assert set(expected[1][1:]) <= {3, 5, 7}
    assert set(expected[4][1:]) == {0}


def test_a_request_that_allows_no_token_fails_alone() -> None:
    driver = Driver(VOCAB)
    driver.begin(0, SamplingParams(allowed_token_ids=(3,), bad_words_token_ids=((3,),)), [0])
    driver.begin(1, SamplingParams(temperature=0), [0])
    one, other = driver.step(torch.stack([logits(0), logits(1)]), [0, 1])
    assert one.error is not None
    assert "allowed_token_ids" in one.error
    assert len(other.token_ids) == 1


def test_what_masks_may_be() -> None:
    for given, message in (
        ({"allowed_token_ids": ()}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": (True,)}, "allowed_token_ids is True"),
        ({"bad_words_token_ids": ((),)}, "an entry without tokens"),
        ({"bad_words_token_ids": (3,)}, "bad_words_token_ids is 3"),
        ({"bad_words_token_ids": ((1,),) * (MAX_BAD_WORDS + 1)}, "at most 128"),
    ):
        with pytest.raises(RequestError, match=message):
            SamplingParams(**given)  # type: ignore[arg-type]
    for params in (SamplingParams(allowed_token_ids=(12,)), SamplingParams(bad_words_token_ids=((1, -1),))):
        with pytest.raises(RequestError, match="expected 0 to 11"):
            check_vocabulary(params, VOCAB)
