"""Routers on scores that can be checked by hand: two of four experts, from the one-hot inputs that select a logit."""

from __future__ import annotations

import math

import pytest
import torch

from loadmaster.architectures.model import RouterSpec
from loadmaster.layers.moe import Router


class Weights:
    """Parameters by the end of their name, in place of a rank's."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name.rpartition(".")[2]]

    def optional(self, name: str) -> torch.Tensor | None:
        return self.tensors.get(name.rpartition(".")[2])


def chosen(spec: RouterSpec, logits: list[float], **tensors: torch.Tensor) -> dict[int, float]:
    weights = Weights(weight=torch.tensor(logits)[:, None], **tensors)
    experts, shares = Router(spec, weights, "gate")(torch.ones(1, 1))  # type: ignore[arg-type]
    return dict(zip(experts[0].tolist(), shares[0].tolist(), strict=True))


LOGITS = [math.log(4.0), 0.0, math.log(3.0), math.log(2.0)]  # shares of 0.4, 0.1, 0.3, 0.2


def test_softmax_scores_are_those_of_all_experts() -> None:
    assert chosen(RouterSpec(topk=2, scoring="softmax", normalise=False), LOGITS) == pytest.approx({0: 0.4, 2: 0.3})


def test_normalised_they_are_a_softmax_over_the_chosen_experts() -> None:
    spec = RouterSpec(topk=2, scoring="softmax", normalise=True, scaling=7.0)
    assert chosen(spec, LOGITS) == pytest.approx({0: 4.0, 2: 3.0})


def test_a_bias_of_the_linear_layer_changes_choice_and_weights() -> None:
    bias = torch.tensor([0.0, math.log(4.0), 0.0, 0.0])
    spec = RouterSpec(topk=2, scoring="softmax", normalise=True)
    assert chosen(spec, LOGITS, bias=bias) == pytest.approx({0: 0.5, 1: 0.5})


def test_a_correction_bias_changes_the_choice_only() -> None:
    correction = torch.tensor([0.0, 1.0, 0.0, 0.0])
    spec = RouterSpec(topk=2, scoring="sigmoid", normalise=False)
    assert chosen(spec, LOGITS, e_score_correction_bias=correction) == pytest.approx({0: 0.8, 1: 0.5})


def test_experts_come_from_the_best_groups() -> None:
    spec = RouterSpec(topk=2, scoring="softmax", normalise=False, num_groups=2, topk_groups=1)
    assert chosen(spec, [0.0, math.log(3.0), math.log(2.0), math.log(4.0)]) == pytest.approx({3: 0.4, 2: 0.2})
