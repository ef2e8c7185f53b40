"""The indexer's choice among equal scores."""

import torch

from loadmaster.layers.indexer import _without_ties


def test_zeros_are_ordered_by_position_below_every_positive_score_and_above_every_negative_one() -> None:
    scores = torch.tensor([[0.0, 1e-20, 0.0, -1e-20, 0.0, 2.0]])
    assert _without_ties(scores).topk(6).indices.tolist() == [[5, 1, 4, 2, 0, 3]]


def test_the_choice_is_the_same_for_a_part_of_the_queries() -> None:
    scores = torch.randn(64, 2000).relu()
    whole = _without_ties(scores).topk(1500, dim=-1).indices
    parts = torch.cat([_without_ties(scores[i : i + 1]).topk(1500, dim=-1).indices for i in range(64)])
    assert torch.equal(whole.sort().values, parts.sort().values)
