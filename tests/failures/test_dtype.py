"""Dtypes: router biases stay F32, a narrowing cast must be declared, and what a parameter may not be is refused."""

from __future__ import annotations

import pytest
import torch

from tests.failures.conftest import Sound

BIAS = r"^model\.layers\.2\.mlp\.gate\.e_score_correction_bias"


def test_a_router_bias_keeps_its_precision_in_a_bf16_model(sound: Sound) -> None:
    proof = sound("glm-5.1-fp8").prove(2)
    biases = [s for s in proof.plan.rank(1).specs if "e_score_correction_bias" in s.name]
    assert biases
    assert {s.dtype for s in biases} == {"F32"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_router_bias_stored_narrower_is_noted_and_widened(dtype: torch.dtype, sound: Sound) -> None:
    damaged = sound("glm-5.1-fp8").change(BIAS, lambda t: t.to(dtype))
    found = damaged.only(4)
    assert (found.code, found.severity, found.ranks) == ("dtype-noted", "note", (2,))
    assert "expected F32" in found.message
    spec = next(s for s in damaged.prove(4).plan.rank(2).specs if s.name.endswith("e_score_correction_bias"))
    assert spec.dtype == "F32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_norm_stored_otherwise_than_its_neighbours_is_noted_and_nothing_is_narrowed_in_silence(
    dtype: torch.dtype, sound: Sound
) -> None:
    found = sound("llama").change(r"layers\.1\.input_layernorm", lambda t: t.to(dtype)).only(2)
    assert (found.code, found.severity, found.ranks) == ("dtype-noted", "note", (0,))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("layers.2.input_layernorm.weight", torch.float8_e4m3fn),
        ("layers.2.mlp.gate.weight", torch.int8),
        ("embed_tokens.weight", torch.float8_e4m3fn),
    ],
)
def test_what_must_not_be_quantised_and_is_is_a_finding(name: str, dtype: torch.dtype, sound: Sound) -> None:
    found = sound("glm-5.1-fp8").change(rf"{name}$", lambda t: t.float().to(dtype)).only(2)
    assert (found.code, found.tensor) == ("dtype-inadmissible", f"model.{name}")
    assert "expected BF16 or F16 or F32, found" in found.message
