"""Drafts change how fast tokens come, never which: shown on a toy model that knows only the last token."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from loadmaster.workers.batch import Sampled, Span
from loadmaster.workers.sampler import Sampler, _Rows
from loadmaster.workers.sampling_params import SamplingParams
from tests.workers.plain_sampler import Driver

VOCAB = 5
TABLE_VV = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
"""The logits of the next token, by the last one."""

CHI_SQUARE_999_OF_24 = 51.18
"""What chi-square with 24 degrees of freedom exceeds once in a thousand samples."""

PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(),
    SamplingParams(temperature=1.5, top_k=4, top_p=0.95, min_p=0.01),
    SamplingParams(temperature=0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.6),
    SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.6),
    SamplingParams(min_tokens=9, stop_token_ids=(2, 3), logit_bias={1: 1.5}, logprobs=2, top_p=0.9),
    SamplingParams(allowed_token_ids=(0, 1, 2, 4), bad_words_token_ids=((4,), (1, 2), (0, 1, 0))),
]


def rows(driver: Driver, requests: Sequence[int], drafts: dict[int, Sequence[int]]) -> torch.Tensor:
    """The model: a row for each last token and each draft."""
    return TABLE_VV[[t for r in requests for t in (driver.tokens[r][-1], *drafts.get(r, ()))]]


@pytest.mark.parametrize("params", PARAMS)
def test_tokens_are_those_of_a_run_without_drafts(params: SamplingParams) -> None:
    rng = random.Random(0)
    for seed in range(8):
        seeded = SamplingParams(**{name: getattr(params, name) for name in params.__slots__} | {"seed": seed})
        plain, drafted = Driver(VOCAB), Driver(VOCAB)
        for driver in (plain, drafted):
            driver.begin(0, seeded, [seed % VOCAB])
        logprobs = [one for _ in range(20) for one in plain.step(rows(plain, [0], {}), [0])[0].logprobs]
        drafted_logprobs, accepted = [], 0
        while (missing := 21 - len(drafted.tokens[0])) > 0:
            known = len(drafted.tokens[0])
            right = plain.tokens[0][known : known + min(3, missing - 1)]
            drafts = {0: tuple(t if rng.random() < 0.7 else rng.randrange(VOCAB) for t in right)}
            sampled = drafted.step(rows(drafted, [0], drafts), [0], drafts)[0]
            accepted += len(sampled.token_ids) - 1
            drafted_logprobs += sampled.logprobs
        assert drafted.tokens == plain.tokens
        assert drafted_logprobs == logprobs
        assert accepted > 0


def test_drafts_are_accepted_while_they_are_right() -> None:
    greedy = SamplingParams(temperature=0)
    best = TABLE_VV.argmax(-1).tolist()
    first, second = best[0], best[best[0]]
    third = best[second]
    wrong = (second + 1) % VOCAB
    for drafts, tokens in (
        ((first, second), (first, second, third)),
        ((first, wrong), (first, second)),
        (((first + 1) % VOCAB, second), (first,)),
        ((), (first,)),
    ):
        driver = Driver(VOCAB)
        driver.begin(0, greedy, [0])
        assert driver.step(rows(driver, [0], {0: drafts}), [0], {0: drafts}) == [Sampled(0, tokens)]


def test_nan_after_a_wrong_draft_is_no_error() -> None:
    first = int(TABLE_VV[0].argmax())
    for draft, fails in ((first, True), ((first + 1) % VOCAB, False)):
        driver, drafts = Driver(VOCAB), {0: (draft,)}
        driver.begin(0, SamplingParams(temperature=0), [0])
        logits = rows(driver, [0], drafts)
        logits[1] = torch.nan
        assert (driver.step(logits, [0], drafts)[0].error is not None) == fails


class AcceptsAll(Sampler):
    """Verification broken on purpose: drafts are taken unseen."""

    def _verified(self, span: Span, rows: _Rows, first: int) -> Sampled:
        return Sampled(span.request, (*span.drafts, rows.tokens[first + len(span.drafts)]))


class SharesADraw(Sampler):
    """Broken in another way: all rows of a span use the draw of the first."""

    def sample(self, logits_RV: torch.Tensor, spans: Sequence[Span]) -> list[Sampled]:
        for span in spans:
            request = self._requests[span.request]
            request.draw = lambda row, position, request=request: type(request).draw(request, row, 7)  # type: ignore[method-assign]
        return super().sample(logits_RV, spans)


@pytest.mark.parametrize(("kind", "lossless"), [(Sampler, True), (AcceptsAll, False), (SharesADraw, False)])
@pytest.mark.parametrize("draft_for_last", [TABLE_VV.argmax(-1).tolist(), [3, 0, 4, 4, 1]], ids=["good", "poor"])
def test_the_distribution_of_two_tokens_is_the_models(
    kind: type[Sampler], lossless: bool, draft_for_last: list[int]
) -> None:
    driver, requests = Driver(VOCAB, kind=kind), [*range(3000)]
    for request in requests:
        driver.begin(request, SamplingParams(seed=request), [0])
    one = draft_for_last[0]
    drafts = dict.fromkeys(requests, (one, draft_for_last[one]))
    driver.step(rows(driver, requests, drafts), requests, drafts)
    short = [request for request in requests if len(driver.tokens[request]) == 2]
    if short:
        driver.step(rows(driver, short, {}), short)
    counts = Counter(tuple(driver.tokens[request][1:3]) for request in requests)
    p_VV = torch.softmax(TABLE_VV, -1)
    statistic = 0.0
    for a in range(VOCAB):
        for b in range(VOCAB):
            expected = float(len(requests) * p_VV[0, a] * p_VV[a, b])
            assert expected > 5
            statistic += (counts[a, b] - expected) ** 2 / expected
    assert (statistic < CHI_SQUARE_999_OF_24) == lossless
