from __future__ import annotations

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from loadmaster.workers.draws import Draw, _Options, _weights, draw, likeliest, uniform

CHI_SQUARE_999 = {7: 24.32, 15: 37.70, 63: 103.44}
"""Degrees of freedom → what chi-square exceeds once in a thousand samples."""


def drawn(logits_V: torch.Tensor, num_draws: int, **options: float) -> torch.Tensor:
    """Return the tokens of ``num_draws`` equal rows."""
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    logits_RV = logits_V.expand(num_draws, -1)
    draws = [Draw(row, uniform(7, row), **given) for row in range(num_draws)]  # type: ignore[arg-type]
    return draw(logits_RV, logits_RV.amax(-1), draws)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


def evenly(logits_V: torch.Tensor, num_draws: int, **options: float) -> torch.Tensor:
    """Return each token's part of ``num_draws`` draws at evenly spaced uniform numbers: within 1 draw of its probability."""
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    logits_RV = logits_V.expand(num_draws, -1)
    draws = [Draw(row, (row + 0.5) / num_draws, **given) for row in range(num_draws)]  # type: ignore[arg-type]
    tokens = draw(logits_RV, logits_RV.amax(-1), draws)
    return torch.bincount(tokens, minlength=len(logits_V)) / num_draws


def test_a_seed_gives_the_same_numbers_in_every_version() -> None:
    assert uniform(0, 0) == 0.6524484863740322
    assert uniform(1, 2**40) == 0.8704323592842975
    assert uniform(-1, 1) == uniform(2**64 - 1, 1) == 0.4077623770414702


@pytest.mark.parametrize("of", ["positions", "seeds"])
def test_numbers_of_consecutive_positions_and_seeds_are_uniform_and_independent(of: str) -> None:
    numbers = torch.tensor([uniform(5, i) if of == "positions" else uniform(i, 5) for i in range(20_001)])
    cells = (numbers * 8).long()
    assert chi_square(torch.bincount(cells, minlength=8), torch.full((8,), 1 / 8)) < CHI_SQUARE_999[7]
    pairs = cells[:-1] * 8 + cells[1:]
    assert chi_square(torch.bincount(pairs, minlength=64), torch.full((64,), 1 / 64)) < CHI_SQUARE_999[63]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 16}, {"top_p": 0.99999}])
def test_draws_follow_the_distribution(options: dict[str, float]) -> None:
    logits = torch.randn(16, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(drawn(logits, 8000, **options), minlength=16)
    probabilities = torch.softmax(logits / options.get("temperature", 1.0), -1)
    assert chi_square(counts, probabilities) < CHI_SQUARE_999[15]
    assert chi_square(counts, torch.softmax(logits * 1.2, -1)) > CHI_SQUARE_999[15]  # the test can fail


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"top_k": 1000},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"min_p": 0.1, "top_k": 10, "top_p": 0.8, "temperature": 1.7},
    ],
)
def test_kept_tokens_are_those_of_transformers(options: dict[str, float], seed: int) -> None:
    """Its warpers in vLLM's order: temperature, min_p, top_k, top_p."""
    logits = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * 3
    scores = logits[None] / options.get("temperature", 1.0)
    warpers = [
        MinPLogitsWarper(options["min_p"]) if "min_p" in options else None,
        TopKLogitsWarper(int(options["top_k"])) if "top_k" in options else None,
        TopPLogitsWarper(options["top_p"]) if "top_p" in options else None,
    ]
    for warper in warpers:
        scores = warper(None, scores) if warper is not None else scores
    parts = evenly(logits, 2000, **options)
    torch.testing.assert_close(parts, torch.softmax(scores[0], -1), atol=1.1 / 2000, rtol=0)


def test_of_equal_logits_those_with_lower_ids_are_kept() -> None:
    logits = torch.zeros(600)
    logits[300] = 1
    assert set(drawn(logits, 200, top_k=3).tolist()) == {0, 1, 300}
    assert set(drawn(logits, 200, top_k=3, top_p=0.7).tolist()) == {0, 300}
    flat = torch.zeros(600)
    assert set(evenly(flat, 1200, top_p=0.5).nonzero().flatten().tolist()) == {*range(300)}


def test_top_p_is_taken_of_what_top_k_and_min_p_leave() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    assert evenly(logits, 70, top_k=2, top_p=0.5).tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(evenly(logits, 70, top_p=0.6), torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=0.02, rtol=0)
    assert evenly(logits, 70, min_p=0.6, top_p=0.5).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-5, 1e-2, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_extreme_temperatures_and_logits_give_a_token(temperature: float, scale: float) -> None:
    logits = torch.randn(600, generator=torch.Generator().manual_seed(2)) * scale
    for options in ({}, {"top_p": 0.9}, {"top_k": 5}):
        tokens = drawn(logits, 50, temperature=temperature, **options)
        if scale / temperature > 1e4:
            assert set(tokens.tolist()) == {int(logits.argmax())}
        else:
            assert len(set(tokens.tolist())) > 1 or scale / temperature > 10


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_give_kept_tokens(number: float) -> None:
    logits = torch.full((1, 700), -math.inf)
    logits[0, 5:9] = torch.tensor([1.0, 2, 3, 0.5])
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.7)):
        token = int(draw(logits, logits.amax(-1), [Draw(0, number, 1.0, top_k, top_p, 0.0)]))
        order = [5, 6, 7, 8] if top_k <= 0 and top_p == 1 else [7, 6, 5] if top_k else [7, 6]
        assert token == (order[0] if number == 0 else order[-1])


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 1000])
def test_likeliest_is_the_first_maximum(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randint(0, 50, (64, vocab_size), generator=generator).float()
    tokens, peaks = likeliest(logits)
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.equal(peaks, logits.amax(-1))


@pytest.mark.parametrize("vocab_size", [1, 255, 256, 2**18])
def test_weights_are_whole_numbers_whose_sums_are_exact(vocab_size: int) -> None:
    """Of logits that are all equal: the largest sum there is. Of others: no fractions."""
    for logits in (torch.zeros(1, vocab_size), torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))):
        options = _Options.of([(0, Draw(0, 0.5, 1.0, 0, 1.0, 0.0))], vocab_size, logits.device)
        weights = _weights(logits, logits.amax(-1, keepdim=True), options)
        assert torch.equal(weights, weights.floor())
        assert sum(int(w) for w in weights[0].tolist()) == int(weights.sum()) < 2**53
