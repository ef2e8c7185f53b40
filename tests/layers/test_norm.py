from __future__ import annotations

import pytest
import torch

from loadmaster.architectures.model import NormKind
from loadmaster.layers.norm import rms_norm


@pytest.mark.parametrize(
    ("kind", "weight", "expected"),
    [
        ("rms", 5.0, 5.90625),  # 3 / sqrt(6.5) = 1.176697, in BF16 1.1796875; times 5, in BF16
        ("rms_wide", 5.0, 5.875),  # 1.176697 times 5, in BF16
        ("rms_offset", 4.0, 5.875),
    ],
)
def test_the_kind_of_a_norm_decides_where_it_rounds(kind: NormKind, weight: float, expected: float) -> None:
    x = torch.tensor([2.0, 3.0], dtype=torch.bfloat16)
    normed = rms_norm(x, torch.full((2,), weight, dtype=torch.bfloat16), 0.0, kind)
    assert normed.dtype == torch.bfloat16
    assert normed[1].item() == expected
