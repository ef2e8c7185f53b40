"""Linear layers: every form of a weight gives the same product."""

import pytest
import torch

from loadmaster.layers import linear_forms
from loadmaster.layers.linear import Linear
from loadmaster.layers.linear_forms import Forms, Tuner
from loadmaster.layers.weight import Weight


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("has_bias", [False, True])
def test_all_forms_of_a_weight_give_the_same_product(num_tokens: int, has_bias: bool) -> None:
    torch.manual_seed(num_tokens)
    weight, x = torch.randn(96, 40), torch.randn(num_tokens, 40)
    bias = torch.randn(96) if has_bias else None
    forms = Forms(weight, weight.t().contiguous(), linear_forms._pack(weight))
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    for linear in (Linear(Weight(weight), bias), Linear(Weight(weight), bias, forms)):
        torch.testing.assert_close(linear(x), expected.float(), rtol=1e-5, atol=1e-5)


def test_small_quantised_and_half_precision_weights_are_used_as_they_are() -> None:
    tuner = Tuner(1 << 40)
    assert tuner.prepare(torch.zeros(64, 64)) is None
    assert tuner.prepare(torch.zeros(1024, 1024, dtype=torch.bfloat16)) is None
    assert tuner.prepare(torch.zeros(1024, 1024, device="meta")) is None


def test_a_form_is_made_where_it_is_faster_and_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_forms, "_is_faster", lambda *_: (True, False))
    weight = torch.randn(512, 512)  # 1 MiB
    tuner = Tuner(3 << 20)
    first, second = tuner.prepare(weight), tuner.prepare(weight)
    assert first is not None
    assert first.columns is not None
    assert first.packed is None
    assert second is not None  # 2 MiB are left, enough to make both forms before choosing
    assert tuner.prepare(weight) is None
