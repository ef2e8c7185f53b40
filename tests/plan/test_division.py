"""What a plan tells the layers about the cut of each parameter: rows, partial sums, experts."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.plan.specs import Division, Rows
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny


def divisions(tiny: Tiny, family: str, rank: int, *, tp: int, **layout: object) -> dict[str, Division]:
    plan = build_plan(open_checkpoint(tiny(family)), ParallelLayout(1, tp, **layout))  # type: ignore[arg-type]
    return {spec.name: spec.division for spec in plan.rank(rank).specs}


def test_each_fused_part_says_which_of_its_rows_are_held(tiny: Tiny) -> None:
    of = divisions(tiny, "qwen3", 1, tp=2)  # 8 heads and 4 key heads of 16
    assert of["layers.0.self_attn.qkv_proj.weight"].parts == (
        Rows(64, 64, 128, 2),
        Rows(32, 32, 64, 2),
        Rows(32, 32, 64, 2),
    )
    assert of["layers.0.self_attn.q_norm.weight"].parts == (Rows(0, 16, 16),)


def test_key_heads_are_repeated_where_there_are_fewer_than_ranks(tiny: Tiny) -> None:
    of = divisions(tiny, "qwen3", 5, tp=8)
    assert of["layers.0.self_attn.qkv_proj.weight"].parts == (
        Rows(80, 16, 128, 8),
        Rows(32, 16, 64, 4),
        Rows(32, 16, 64, 4),
    )


@pytest.mark.parametrize("tp", [1, 2])
def test_a_product_is_partial_where_the_weight_is_cut_along_its_in_dim(tp: int, tiny: Tiny) -> None:
    of = divisions(tiny, "glm-5.1-fp8", 0, tp=tp)
    partial = {name.partition(".3.")[2] for name, division in of.items() if division.is_partial and ".3." in name}
    cut = {"self_attn.o_proj.weight", "mlp.experts.w2_weight", "mlp.shared_experts.down_proj.weight"}
    assert partial == (cut if tp > 1 else set())


def test_a_bias_has_the_rows_of_its_weight(tiny: Tiny) -> None:
    of = divisions(tiny, "qwen2", 1, tp=2)
    assert of["layers.0.self_attn.qkv_proj.bias"].parts == of["layers.0.self_attn.qkv_proj.weight"].parts
    assert not of["layers.0.self_attn.qkv_proj.bias"].is_partial


def test_sliced_experts_are_all_held_and_those_dealt_out_are_not(tiny: Tiny) -> None:
    sliced = divisions(tiny, "glm-5.1-fp8", 1, tp=2)["layers.3.mlp.experts.w13_weight"]
    assert sliced == Division((Rows(48, 48, 96, 2), Rows(48, 48, 96, 2)), False, tuple(range(8)))
    dealt = divisions(tiny, "glm-5.1-fp8", 1, tp=2, enable_expert_parallel=True)
    w13, w2 = (dealt[f"layers.3.mlp.experts.{w}_weight"] for w in ("w13", "w2"))
    assert w13 == Division((Rows(0, 96, 96), Rows(0, 96, 96)), True, (4, 5, 6, 7))
    assert w2 == Division((Rows(0, 320, 320),), True, (4, 5, 6, 7))


def test_experts_dealt_in_turns_and_redundant_ones_are_computed_once(tiny: Tiny) -> None:
    layout = {"enable_expert_parallel": True, "expert_placement": "round_robin", "num_redundant_experts": 2}
    held = [divisions(tiny, "glm-5.1-fp8", r, tp=2, **layout)["layers.3.mlp.experts.w2_weight"].experts for r in (0, 1)]
    assert held == [(0, 2, 4, 6, -1), (1, 3, 5, 7, -1)]


def test_a_stack_that_is_stored_as_one_tensor_is_divided_like_single_experts(tiny: Tiny) -> None:
    for layout in ({}, {"enable_expert_parallel": True}):
        of = divisions(tiny, "gpt-oss-bf16", 1, tp=2, **layout)
        w2 = next(division for name, division in of.items() if name.endswith(".0.mlp.experts.w2_weight"))
        assert w2.is_partial
        assert w2.experts == (tuple(range(4, 8)) if layout else tuple(range(8)))
        bias = next(division for name, division in of.items() if name.endswith(".0.mlp.experts.w2_bias"))
        assert bias.is_partial == bool(layout)  # whole biases are added once, those of dealt experts by their rank


def test_a_padded_vocabulary_says_which_rows_are_real(tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path, overrides={"vocab_size": 330})
    plan = build_plan(open_checkpoint(tmp_path), ParallelLayout(1, 4))
    for name in ("embed_tokens.weight", "lm_head.weight"):
        (division,) = (s.division for s in plan.rank(3).specs if s.name == name)
        assert division.parts == (Rows(288, 96, 330, 4),)
