"""What decides a request's tokens, and what does not. Draws, penalties, drafts, log probabilities: files of their own."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loadmaster.workers.batch import Sampled, Span, Start
from loadmaster.workers.sampler import Sampler
from loadmaster.workers.sampling_params import SamplingParams
from tests.workers.plain_sampler import Driver, plain_token

ENDS = (2, 7)


def some_params(rng: random.Random) -> SamplingParams:
    """Parameters of any kind; each option is on in about every second request."""

    def maybe(value: Any, neutral: Any) -> Any:
        return value if rng.random() < 0.5 else neutral

    return SamplingParams(
        temperature=maybe(rng.uniform(0.2, 2), 0.0),
        top_p=maybe(rng.uniform(0.1, 1), 1.0),
        top_k=maybe(rng.randint(1, 40), 0),
        min_p=maybe(rng.uniform(0, 0.3), 0.0),
        repetition_penalty=maybe(rng.uniform(0.7, 1.6), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=maybe({rng.randrange(60): rng.uniform(-5, 5) for _ in range(4)}, {}),
        min_tokens=maybe(3, 0),
        stop_token_ids=maybe((rng.randrange(60),), ()),
        seed=rng.getrandbits(63),
        logprobs=maybe(rng.randint(0, 5), None),
    )


def some_logits(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Logits of bfloat16 precision: equal ones are frequent."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, vocab_size, generator=generator) * 2).bfloat16()


@pytest.mark.parametrize("vocab_size", [60, 256, 700])
def test_a_batch_gives_what_plain_loops_give_for_each_row(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    driver = Driver(vocab_size, ENDS)
    requests = {r: some_params(rng) for r in range(60)}
    prompts = {r: [rng.randrange(60) for _ in range(rng.randint(1, 9))] for r in requests}
    for request, params in requests.items():
        driver.begin(request, params, prompts[request])
    for step in range(5):
        logits = some_logits(len(requests), vocab_size, step)
        expected = {
            r: plain_token(row, requests[r], prompts[r], driver.tokens[r][len(prompts[r]) :], ENDS)
            for r, row in zip(requests, logits.tolist(), strict=True)
        }
        assert {s.request: s.token_ids[0] for s in driver.step(logits, [*requests])} == expected


def test_a_request_gets_the_same_alone_as_in_any_batch() -> None:
    rng = random.Random(1)
    params = [some_params(rng) for _ in range(40)]
    logits = some_logits(40, 600)

    def sampled(order: list[int]) -> dict[int, Sampled]:
        driver = Driver(600, ENDS)
        for request in order:
            driver.begin(request, params[request], [5, request])
        return {s.request: s for s in driver.step(logits[order], order)}

    together = sampled([*range(40)])
    assert sampled([*reversed(range(40))]) == together
    assert sampled(rng.sample(range(40), 40)) == together
    assert {r: s for request in range(40) for r, s in sampled([request]).items()} == together


def test_a_request_that_starts_again_goes_on_as_it_would_have() -> None:
    rng = random.Random(2)
    for request in range(20):
        params, steady, preempted = some_params(rng), Driver(60, ENDS), Driver(60, ENDS)
        steady.begin(0, params, [3, 4])
        for step in range(4):
            steady.step(some_logits(1, 60, step), [0])
        preempted.begin(0, params, [3, 4], steady.tokens[0][2:])
        logits = some_logits(1, 60, 99)
        assert preempted.step(logits, [0]) == steady.step(logits, [0]), request


def test_the_position_is_that_of_the_sequence_whatever_part_of_it_is_computed() -> None:
    params, logits = SamplingParams(seed=4), some_logits(1, 60)
    whole, part = Sampler(60), Sampler(60)
    for sampler in (whole, part):
        sampler.begin(0, Start(params, (1, 2, 3), 3))
    assert whole.sample(logits, [Span(0, 0, (1, 2, 3), num_logits=1)]) == part.sample(
        logits, [Span(0, 2, (3,), num_logits=1)]
    )


def test_spans_without_logits_have_no_rows() -> None:
    sampler = Sampler(3)
    for request in (0, 1):
        sampler.begin(request, Start(SamplingParams(temperature=0), (1, 2), 2))
    logits = torch.tensor([[0.0, 2, 1]])
    spans = [Span(0, 0, (1,)), Span(1, 0, (1, 2), num_logits=1)]
    assert sampler.sample(logits, spans) == [Sampled(1, (1,))]
    assert sampler.sample(logits[:0], spans[:1]) == []


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(temperature=9e-6), SamplingParams(top_k=1)]
)
def test_greedy_chooses_the_likeliest_and_of_equal_ones_the_lowest_id(params: SamplingParams) -> None:
    driver = Driver(600)
    for request in range(3):
        driver.begin(request, params, [0])
    logits = torch.zeros(3, 600)
    logits[0, [300, 20, 599]] = 1
    logits[1, 599] = 1
    assert [s.token_ids for s in driver.step(logits, [0, 1, 2])] == [(20,), (599,), (0,)]


def test_requests_without_a_seed_differ() -> None:
    driver = Driver(1000)
    for request in range(50):
        driver.begin(request, SamplingParams(), [0])
    assert len({s.token_ids for s in driver.step(torch.zeros(50, 1000), [*range(50)])}) > 25


class NoWait(TorchDispatchMode):
    """Refuses operations that a device would have to finish before the host can go on."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        name = func.overloadpacket.__name__
        assert name not in ("item", "_local_scalar_dense", "nonzero", "masked_select", "_unique2"), name
        if name.startswith("index"):
            indices = [i for arg in args if isinstance(arg, (list, tuple)) for i in arg if isinstance(i, torch.Tensor)]
            assert all(i.dtype != torch.bool for i in indices), f"{name} with a mask"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    rng = random.Random(6)
    driver = Driver(600, ENDS)
    for request in range(60):
        driver.begin(request, some_params(rng), [1, request])
    with NoWait() as mode:
        driver.step(some_logits(180, 600), [*range(60)], dict.fromkeys(range(60), (3, 4)))
    assert mode.seen > 50
    zeros = torch.zeros(3)
    for waits in (lambda: zeros[zeros == 0], zeros.nonzero, zeros[0].item):
        with NoWait(), pytest.raises(AssertionError):
            waits()


def test_logits_are_not_changed() -> None:
    rng = random.Random(3)
    driver, logits = Driver(60, ENDS), some_logits(30, 60).float()
    for request in range(30):
        driver.begin(request, some_params(rng), [1, 2])
    before = logits.clone()
    driver.step(logits, [*range(30)])
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(math.nan, "contain NaN"), (math.inf, "contain infinity"), (-math.inf, "contain no finite value")],
)
def test_a_row_that_is_no_distribution_is_an_error_of_its_request_alone(value: float, reason: str) -> None:
    rng = random.Random(4)
    params = [some_params(rng) for _ in range(40)]
    good, bad = some_logits(40, 600), some_logits(40, 600)
    for row in range(0, 40, 2):
        bad[row, 17 if value != -math.inf else slice(None)] = value

    def sampled(logits: torch.Tensor) -> list[Sampled]:
        driver = Driver(600, ENDS)
        for request in range(40):
            driver.begin(request, params[request], [5, request])
        return driver.step(logits, [*range(40)])

    expected, results = sampled(good), sampled(bad)
    assert results[1::2] == expected[1::2]
    for result in results[::2]:
        assert result.token_ids == () and reason in str(result.error)


def test_logits_of_minus_infinity_are_never_sampled() -> None:
    driver, logits = Driver(600), torch.full((40, 600), -math.inf)
    logits[:, [3, 500]] = 0
    for request in range(40):
        driver.begin(request, SamplingParams(seed=request, top_p=1 if request % 2 else 0.9), [0])
    assert {s.token_ids for s in driver.step(logits, [*range(40)])} == {(3,), (500,)}


def test_nothing_left_to_sample_is_an_error() -> None:
    driver = Driver(3, [0, 1, 2])
    driver.begin(0, SamplingParams(min_tokens=1), [0])
    assert "min_tokens" in str(driver.step(torch.zeros(1, 3), [0])[0].error)


def test_a_request_that_is_forgotten_is_not_known() -> None:
    driver = Driver(3)
    driver.begin(0, SamplingParams(), [0])
    driver.sampler.forget(0)
    driver.sampler.forget(0)
    with pytest.raises(KeyError):
        driver.step(torch.zeros(1, 3), [0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    rng = random.Random(5)
    params = [some_params(rng) for _ in range(200)]
    for step, vocab_size in enumerate((60, 2000, 50_000)):
        logits = some_logits(600, vocab_size, step)
        results = []
        for device in ("cpu", "cuda"):
            driver = Driver(vocab_size, ENDS)
            for request in range(200):
                driver.begin(request, params[request], [5, request % 60])
            drafts = {request: (request % 50, 3) for request in range(200)}
            results.append(driver.step(logits.to(device), [*range(200)], drafts))
        cpu, cuda = results
        assert [s.token_ids for s in cuda] == [s.token_ids for s in cpu]
        for one, other in zip(cuda, cpu, strict=True):
            for a, b in zip(one.logprobs, other.logprobs, strict=True):
                assert [t.token_id for t in a.top] == [t.token_id for t in b.top]
                assert (a.chosen.rank, a.chosen.logprob) == (b.chosen.rank, pytest.approx(b.chosen.logprob, abs=1e-9))
