import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.errors import RequestError, RunError
from loadmaster.workers.sampler import Sampler, kept_probabilities
from loadmaster.workers.sampling_params import SamplingParams

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))

logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40).map(torch.tensor)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(-1, 50),
    seed=st.integers(0, 2**32),
)


def test_temperature_zero_is_the_likeliest_token() -> None:
    assert Sampler(SamplingParams(temperature=0)).sample(LOGITS[None]) == 1


def test_top_k_keeps_the_k_likeliest_and_makes_them_a_distribution() -> None:
    kept = kept_probabilities(LOGITS, SamplingParams(top_k=2))
    torch.testing.assert_close(kept, torch.tensor([0, 4 / 7, 0, 3 / 7]))


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    kept = kept_probabilities(LOGITS, SamplingParams(top_p=0.6))
    torch.testing.assert_close(kept, torch.tensor([0, 4 / 7, 0, 3 / 7]))


def test_top_p_is_taken_of_what_top_k_leaves() -> None:
    kept = kept_probabilities(LOGITS, SamplingParams(top_k=2, top_p=0.5))
    torch.testing.assert_close(kept, torch.tensor([0.0, 1, 0, 0]))


def test_temperature_flattens() -> None:
    kept = kept_probabilities(LOGITS, SamplingParams(temperature=2))
    weights = [math.sqrt(p) for p in (0.1, 0.4, 0.2, 0.3)]
    torch.testing.assert_close(kept, torch.tensor([w / sum(weights) for w in weights]))


@given(logits, params)
def test_what_is_kept_is_a_distribution_over_the_likeliest(logits_V: torch.Tensor, params: SamplingParams) -> None:
    kept = kept_probabilities(logits_V, params)
    assert kept.sum().item() == pytest.approx(1, abs=1e-4)
    num_kept = int((kept > 0).sum())
    assert num_kept >= 1
    if params.top_k > 0:
        assert num_kept <= params.top_k
    dropped = logits_V[kept == 0]
    if len(dropped) and (params.top_k > 0 or params.top_p < 1):
        assert logits_V[kept > 0].min() >= dropped.max() or kept[kept > 0].min() < 1e-30


@given(logits, params)
def test_the_same_seed_gives_the_same_tokens(logits_V: torch.Tensor, params: SamplingParams) -> None:
    one, two = Sampler(params), Sampler(params)
    assert [one.sample(logits_V) for _ in range(5)] == [two.sample(logits_V) for _ in range(5)]


def test_samples_follow_the_distribution() -> None:
    sampler = Sampler(SamplingParams(seed=0))
    counts = torch.bincount(torch.tensor([sampler.sample(LOGITS) for _ in range(4000)]), minlength=4)
    torch.testing.assert_close(counts / 4000, torch.exp(LOGITS), atol=0.03, rtol=0)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(RunError, match="NaN"):
        Sampler(SamplingParams(temperature=0)).sample(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("temperature", -1), ("temperature", math.nan), ("top_p", 0), ("top_p", 1.1), ("top_k", -2)],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"^{name} is"):
        SamplingParams(**{name: value})
