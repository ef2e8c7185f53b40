"""Mixed precision against the config's list of unquantised modules: the headers decide, a contradiction is a finding."""

from __future__ import annotations

import pytest
import torch

from tests.failures.conftest import Sound

Q_A = r"^model\.layers\.1\.self_attn\.q_a_proj\.weight"


def test_a_module_listed_as_unquantised_and_stored_quantised_is_a_warning(sound: Sound) -> None:
    damaged = sound("glm-5.1-fp8").quantization(modules_to_not_convert=["model.layers.1.self_attn.q_a_proj"])
    found = damaged.only(2)
    assert (found.code, found.severity, found.ranks) == ("format-contradiction", "warning", (0,))
    assert found.tensor == "model.layers.1.self_attn.q_a_proj.weight"
    assert "config says unquantised, file says F8_E4M3" in found.message
    assert damaged.prove(2).proven


def test_a_module_stored_plain_and_not_listed_is_a_warning(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").drop(Q_A + "_scale_inv").change(Q_A, lambda t: t.float().bfloat16()).only(2)
    assert (found.code, found.severity, found.ranks) == ("format-contradiction", "warning", (0,))
    assert "config says quantised, file says BF16" in found.message


def test_a_module_stored_plain_and_listed_needs_no_word(sound: Sound) -> None:
    damaged = sound("glm-5.1-fp8").drop(Q_A + "_scale_inv").change(Q_A, lambda t: t.float().bfloat16())
    damaged.quantization(modules_to_not_convert=["model.layers.1.self_attn.q_a_proj"])
    assert damaged.prove(2).findings == ()


def test_a_whole_layer_against_the_list_is_one_warning_a_layer(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").quantization(modules_to_not_convert=["model.layers.2"]).only(4)
    assert (found.code, found.severity, found.tensor) == ("format-contradiction", "warning", "model.layers.2.*")
    assert found.ranks == (2,)


def test_quantised_weights_under_a_config_that_says_nothing_of_it_cannot_be_decoded(sound: Sound) -> None:
    proof = sound("glm-5.1-fp8").config(quantization_config=...).prove(2)
    assert not proof.proven
    assert {f.code for f in proof.findings if f.severity == "error"} == {"format-contradiction", "tensor-unexpected"}
    assert any("no quantization_config for it" in f.message for f in proof.findings)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int8])
def test_values_in_a_format_that_the_config_does_not_claim_are_refused(dtype: torch.dtype, sound: Sound) -> None:
    found = sound("glm-5.1-fp8").change(Q_A + "$", lambda t: t.float().to(dtype)).only(2)
    assert (found.code, found.tensor) == ("dtype-inadmissible", "model.layers.1.self_attn.q_a_proj.weight")
    assert "expected BF16 or F16 or F32 or F8_E4M3, found" in found.message
