"""Tensor parallelism against heads, experts and quantisation blocks: refused before launch, with the sizes that are legal."""

from __future__ import annotations

import pytest

from loadmaster.errors import LayoutError
from tests.failures.conftest import Sound


@pytest.mark.parametrize(
    ("preset", "size", "legal"), [("glm-5.1-fp8", 3, "1, 2, 4, 8"), ("qwen3", 3, "1, 2, 4, 8"), ("smollm2", 2, ": 1")]
)
def test_heads_that_do_not_divide_are_refused_with_the_sizes_that_would(
    preset: str, size: int, legal: str, sound: Sound
) -> None:
    with pytest.raises(LayoutError, match="do not divide over") as refused:
        sound(preset).prove(1, size)
    assert refused.value.code == "layout-indivisible"
    assert legal in str(refused.value.hint)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_cut_inside_a_quantisation_block_is_proven_and_never_rounded_to_the_block(size: int, sound: Sound) -> None:
    """576 rows on blocks of 128, 29568 / 8 = 28.875 blocks: here 8 heads of 40 rows, which no rank's cut respects."""
    proof = sound("glm-5.1-fp8").prove(1, size)
    assert proof.findings == ()
    specs = {s.name: s for s in proof.plan.rank(1).specs}
    (grid,) = specs["layers.0.self_attn.q_b_proj.weight"].grids
    assert grid.phase == ((320 // size) % 128, 0)


@pytest.mark.parametrize("size", [2, 4])
def test_a_grid_that_is_ragged_on_another_block_size_than_claimed_is_a_finding(size: int, sound: Sound) -> None:
    found = sound("glm-5.1-fp8").quantization(weight_block_size=[64, 64]).prove(1, size).findings
    assert {f.code for f in found} == {"shape-mismatch"}
    assert all(str(f.tensor).endswith("weight_scale_inv") for f in found)


def test_experts_that_cannot_be_dealt_out_are_refused(sound: Sound) -> None:
    with pytest.raises(LayoutError, match="4 experts cannot be dealt out evenly to 8 ranks"):
        sound("glm-5.1-fp8").prove(1, 8, enable_expert_parallel=True)
    assert sound("deepseek-v3").prove(1, 4, enable_expert_parallel=True).findings == ()


def test_an_expert_that_is_missing_touches_the_rank_it_is_dealt_to(sound: Sound) -> None:
    """Four experts over three ranks are two, one and one."""
    damaged = sound("glm-5.1-fp8").drop(r"layers\.3\.mlp\.experts\.2\.down_proj\.weight$")
    (found,) = damaged.prove(1, 1, enable_expert_parallel=True, data_parallel_size=3).findings
    assert found.ranks == (1,)
