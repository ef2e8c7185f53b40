"""Attention where all scores are 0, so that shares can be counted: two query heads over one head of keys and values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from loadmaster.layers.attention import Scoring, attend
from loadmaster.layers.step import Context, Step

VALUES = [1.0, 3.0, 8.0, 4.0]


def attended(scoring: Scoring, first: int, dtype: torch.dtype = torch.float32) -> list[list[float]]:
    """Return for each token from position ``first`` on what each of two heads attends to."""
    length = len(VALUES)
    context = Context(0, length - first, first, length, np.array([0], np.int32), length)
    positions = list(range(first, length))
    step = Step([context], positions, positions, positions, [])
    q_TND, k_NSD = torch.zeros(length - first, 2, 8, dtype=dtype), torch.ones(1, length, 8, dtype=dtype)
    v_NSD = torch.tensor(VALUES, dtype=dtype)[None, :, None].expand(1, length, 8)
    out_TND = attend(q_TND, k_NSD, v_NSD, step, scoring)
    assert out_TND.shape == q_TND.shape
    assert torch.equal(out_TND, out_TND[..., :1].expand_as(out_TND))
    return out_TND[..., 0].tolist()


@pytest.mark.parametrize("first", [0, 2, 3])
def test_each_token_attends_to_those_before_it(first: int) -> None:
    assert attended(Scoring(0.5), first) == [[v, v] for v in (1.0, 2.0, 4.0, 4.0)[first:]]


@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_window_ends_with_the_token_itself(first: int) -> None:
    assert attended(Scoring(0.5, window=2), first) == [[v, v] for v in (1.0, 2.0, 5.5, 6.0)[first:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_sink_takes_the_share_of_its_score_in_each_head(first: int, dtype: torch.dtype) -> None:
    """Sinks that count as one more token and as two: 1 / 2, 4 / 3, 12 / 4, 16 / 5 of the first head."""
    sinks = torch.tensor([0.0, math.log(2.0)])
    close = 1e-6 if dtype == torch.float32 else 0.02
    whole = [(1 / 2, 1 / 3), (4 / 3, 4 / 4), (12 / 4, 12 / 5), (16 / 5, 16 / 6)]
    for token, expected in zip(attended(Scoring(0.5, sinks_N=sinks), first, dtype), whole[first:], strict=True):
        assert token == pytest.approx(expected, rel=close)
    windowed = [(1 / 2, 1 / 3), (4 / 3, 4 / 4), (11 / 3, 11 / 4), (12 / 3, 12 / 4)]
    for token, expected in zip(attended(Scoring(0.5, 2, sinks), first, dtype), windowed[first:], strict=True):
        assert token == pytest.approx(expected, rel=close)
