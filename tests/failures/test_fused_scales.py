"""A fused parameter and its scales: one expression names every source, so what is missing is a finding, never a wait."""

from __future__ import annotations

import pytest
import torch

from tests.failures.conftest import Sound

WK = r"^model\.layers\.2\.self_attn\.indexer\.wk\.weight"
FUSED = ["self_attn.indexer.wk", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "mlp.shared_experts.up_proj"]


@pytest.mark.parametrize("part", FUSED)
def test_a_part_of_a_fused_parameter_whose_scale_was_dropped_is_a_finding_at_the_scale(part: str, sound: Sound) -> None:
    found = sound("glm-5.1-fp8").drop(rf"layers\.2\.{part}\.weight_scale_inv").only(2)
    assert (found.code, found.tensor) == ("scale-missing", f"model.layers.2.{part}.weight_scale_inv")
    assert found.ranks == (1,)
    assert f"model.layers.2.{part}.weight is F8_E4M3 (fp8_block) and needs it" in found.message


@pytest.mark.parametrize("part", FUSED)
def test_a_part_of_a_fused_parameter_that_is_missing_is_a_finding_at_that_part(part: str, sound: Sound) -> None:
    found = sound("glm-5.1-fp8").drop(rf"layers\.2\.{part}\.weight$").only(2)
    assert (found.code, found.tensor, found.ranks) == ("tensor-missing", f"model.layers.2.{part}.weight", (1,))


def test_scales_spelled_otherwise_throughout_are_one_finding_that_names_both_spellings(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").rename("weight_scale_inv$", "weight_scale").only(2)
    assert (found.code, found.ranks) == ("scale-missing", (0, 1))
    assert "more renamed in the same way" in found.message
    assert "'weight_scale' in place of 'weight_scale_inv'" in str(found.hint)


def test_all_scales_lost_are_one_finding_that_counts_them(sound: Sound) -> None:
    proof = sound("deepseek-v3").drop("weight_scale_inv$").prove(2)
    found = [f for f in proof.findings if f.severity == "error"]
    assert [f.code for f in found] == ["scale-missing"]
    assert "more like it" in found[0].message


def test_a_scale_left_beside_a_dequantised_weight_is_a_finding_at_the_scale(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").change(WK + "$", lambda t: t.float().bfloat16()).only(2)
    assert (found.code, found.tensor) == ("scale-stray", "model.layers.2.self_attn.indexer.wk.weight_scale_inv")
    assert "which is BF16 and not quantised" in found.message


@pytest.mark.parametrize("cut", ["rows", "transposed"])
def test_a_scale_of_another_grid_than_its_weight_s_is_a_finding_with_both_shapes(cut: str, sound: Sound) -> None:
    def mend(t: torch.Tensor) -> torch.Tensor:
        return t[:1] if cut == "rows" else t.t()

    found = sound("glm-5.1-fp8").change(r"layers\.2\.self_attn\.q_a_proj\.weight_scale_inv", mend).only(2)
    assert (found.code, found.tensor) == ("shape-mismatch", "model.layers.2.self_attn.q_a_proj.weight_scale_inv")
    assert "expected [2, 3] from the config, found " in found.message
