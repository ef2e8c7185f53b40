from __future__ import annotations

import math
from typing import Any

import pytest

from loadmaster.errors import RequestError
from loadmaster.workers.sampling_params import SamplingParams, check_vocabulary

WRONG = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("min_tokens", -1),
    ("min_tokens", 17),
    ("temperature", -1),
    ("temperature", math.nan),
    ("temperature", 101),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", True),
    ("min_p", -0.1),
    ("min_p", math.nan),
    ("repetition_penalty", 0),
    ("repetition_penalty", math.inf),
    ("repetition_penalty", math.nan),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", "1"),
    ("logprobs", 21),
    ("logprobs", -1),
    ("logprobs", True),
    ("prompt_logprobs", 21),
    ("seed", 2**63),
    ("seed", 2**4000),
    ("stop_token_ids", (1, "2")),
    ("stop_token_ids", 5),
    ("ignore_eos", 1),
    ("logit_bias", {1: 101}),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", {"1": 1}),
    ("logit_bias", {1: "1"}),
    ("logit_bias", 5),
    ("logit_bias", (1, 2)),
    ("logit_bias", ((1, 2.0), (1, 3.0))),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name} (is|has)"):
        SamplingParams(**{name: value})


def test_the_limits_are_allowed() -> None:
    for sign in (-1, 1):
        SamplingParams(
            min_tokens=16,
            temperature=100,
            min_p=1,
            presence_penalty=2 * sign,
            frequency_penalty=2 * sign,
            logit_bias={0: 100 * sign},
            logprobs=20,
            prompt_logprobs=0,
            seed=-(2**63),
        )
    SamplingParams(max_tokens=None, min_tokens=10_000)


def test_equal_parameters_are_equal_and_hashable() -> None:
    one = SamplingParams(logit_bias={5: 1, 3: -2.5}, stop_token_ids=[1, 2])  # type: ignore[arg-type]
    other = SamplingParams(logit_bias=((3, -2.5), (5, 1)), stop_token_ids=(1, 2))
    assert one == other and hash(one) == hash(other)
    assert one.biases == ((3, -2.5), (5, 1.0))


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (SamplingParams(stop_token_ids=(3, 100)), "stop_token_ids"),
        (SamplingParams(stop_token_ids=(-1,)), "stop_token_ids"),
        (SamplingParams(logit_bias={100: 1}), "logit_bias"),
        (SamplingParams(logit_bias={-1: 1}), "logit_bias"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused_by_name(params: SamplingParams, name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name} has token id -?1.*expected 0 to 99"):
        check_vocabulary(params, 100)


def test_tokens_of_the_vocabulary_are_allowed() -> None:
    check_vocabulary(SamplingParams(stop_token_ids=(0, 99), logit_bias={0: 1, 99: 1}), 100)
