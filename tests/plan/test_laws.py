"""A plan broken in one piece: each law notices its own breach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loadmaster.architectures.algebra import Cast, Fill, Stored
from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.plan.breach import broken, moved, piece_of, pieces, plan_of
from tests.plan.damage import Damaged

HIDDEN = 128  # of the tiny llama


# What is written ------------------------------------------------------------------------------------------------------


def test_a_parameter_that_lacks_a_piece_is_not_filled_and_what_it_held_is_not_read(tiny: Tiny) -> None:
    plan = broken(plan_of(tiny), "qkv_proj.weight", lambda c: replace(c, pieces=c.pieces[:-1]))
    findings = prove(plan).findings
    assert [(f.code, f.severity, f.param) for f in findings] == [
        ("law-destination", "error", "{block}.self_attn.qkv_proj.weight"),
        ("law-source", "error", None),
    ]
    assert findings[0].message == "[256, 128] is not filled exactly once by its 2 piece(s)"
    assert findings[1].message.startswith("attn.v/weight (")
    assert findings[1].message.endswith("is read by no parameter of any rank")


def test_a_piece_written_twice_breaks_both_sides(tiny: Tiny) -> None:
    plan = broken(plan_of(tiny), "qkv_proj.weight", lambda c: replace(c, pieces=(*c.pieces, c.pieces[0])))
    assert [f.code for f in prove(plan).findings] == ["law-destination", "law-source"]
    assert "attn.q/weight" in prove(plan).findings[1].message
    assert prove(plan).findings[1].message.endswith("are read [2] times, declared [1]")


def test_two_pieces_that_overlap_are_no_tiling(tiny: Tiny) -> None:
    sound = plan_of(tiny)
    first, second, third = (piece_of(sound, "qkv_proj.weight", i) for i in range(3))
    shifted = replace(second, box=((second.box[0][0] - 1, second.box[0][1] - 1), second.box[1]))
    plan = broken(sound, "qkv_proj.weight", pieces(first, shifted, third))
    assert [(f.code, f.param) for f in prove(plan).findings] == [
        ("law-destination", "{block}.self_attn.qkv_proj.weight")
    ]


def test_each_breach_is_said_once_however_many_places_share_the_parameter(tiny: Tiny) -> None:
    sound = plan_of(tiny, "llama", 1, 2)
    name = "input_layernorm.weight"
    assert piece_of(sound, name, place=0) is piece_of(sound, name, place=1)
    lost = next(c for c in sound.composed[0, 0] if c.spec.name.endswith(name))
    none = replace(lost, pieces=())
    composed = {k: tuple(none if c is lost else c for c in cs) for k, cs in sound.composed.items()}
    assert [f.code for f in prove(replace(sound, composed=composed)).findings] == ["law-destination", "law-source"]


def test_the_model_s_own_parameters_are_checked_as_well(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    (norm,) = plan.top[0]["norm.weight"]
    short = replace(norm, spec=replace(norm.spec, shape=(HIDDEN + 1,)))
    top = {0: {**plan.top[0], "norm.weight": (short,)}}
    assert [(f.code, f.param) for f in prove(replace(plan, top=top)).findings] == [("law-destination", "norm.weight")]


# What is read ---------------------------------------------------------------------------------------------------------


def test_a_rank_that_reads_another_s_rows_leaves_some_unread_and_reads_others_twice(tiny: Tiny) -> None:
    sound = plan_of(tiny, "llama", 1, 2)
    gate, up = (piece_of(sound, "gate_up_proj.weight", i, place=1) for i in range(2))
    plan = broken(sound, "gate_up_proj.weight", pieces(moved(gate, 0, -128), up), place=1)
    (finding,) = prove(plan).findings
    assert finding.code == "law-source"
    assert "mlp.gate/weight" in finding.message
    assert finding.message.endswith("are read [0, 2] times, declared [1]")


def test_one_row_off_is_noticed(tiny: Tiny) -> None:
    sound = plan_of(tiny, "llama", 1, 2)
    gate, up = (piece_of(sound, "gate_up_proj.weight", i, place=1) for i in range(2))
    plan = broken(sound, "gate_up_proj.weight", pieces(moved(gate, 0, -1), up), place=1)
    assert [f.code for f in prove(plan).findings] == ["law-source"]


def test_a_part_put_in_the_place_of_another_is_noticed_where_shapes_agree(tiny: Tiny) -> None:
    sound = plan_of(tiny)
    gate, up = (piece_of(sound, "gate_up_proj.weight", i) for i in range(2))
    plan = broken(sound, "gate_up_proj.weight", pieces(gate, replace(up, source=gate.source)))
    assert [(f.code, f.message.split()[0]) for f in prove(plan).findings] == [
        ("law-source", "elements"),
        ("law-source", "mlp.up/weight"),
    ]


def test_what_is_divided_may_not_be_held_by_all(tiny: Tiny) -> None:
    sound = plan_of(tiny, "llama", 1, 2)
    whole = next(c for c in plan_of(tiny).composed[0, 0] if c.spec.name.endswith("down_proj.weight"))
    composed = {k: tuple(whole if c.spec == spec else c for c in cs) for k, cs in sound.composed.items()
                for spec in [next(c.spec for c in cs if c.spec.name.endswith("down_proj.weight"))]}  # fmt: skip
    (finding,) = prove(replace(sound, composed=composed)).findings
    assert finding.message.endswith("are read [2] times, declared [1]")


def test_what_is_replicated_must_be_held_by_all(tiny: Tiny) -> None:
    sound = plan_of(tiny, "llama", 1, 2)
    norm = piece_of(sound, "input_layernorm.weight")
    constant = replace(norm, source=Fill((HIDDEN,), "BF16", 1.0))
    plan = broken(sound, "input_layernorm.weight", pieces(constant), place=1)
    (finding,) = prove(plan).findings
    assert finding.message.endswith("are read [1] times, declared [2]")


def test_an_expert_loaded_in_the_place_of_another_is_noticed(tiny: Tiny) -> None:
    sound = plan_of(tiny, "qwen3-moe")
    twice = (0, 0, 2, 3, 4, 5, 6, 7)
    w2 = piece_of(sound, "experts.w2_weight")
    assert w2.ids == tuple(range(8))
    plan = broken(sound, "experts.w2_weight", pieces(replace(w2, ids=twice)))
    (finding,) = prove(plan).findings
    assert finding.message.endswith("are read [0, 2] times, declared [1]")


def test_experts_dealt_to_the_wrong_rank_are_noticed_and_in_another_order_are_not(tiny: Tiny) -> None:
    sound = plan_of(tiny, "qwen3-moe", 1, 2, enable_expert_parallel=True)
    w2 = piece_of(sound, "experts.w2_weight", place=1)
    assert w2.ids == (4, 5, 6, 7)
    for order in ((7, 6, 5, 4), (4, 6, 5, 7)):
        turned = broken(sound, "experts.w2_weight", pieces(replace(w2, ids=order)), place=1)
        assert prove(turned).findings == ()
    wrong = broken(sound, "experts.w2_weight", pieces(replace(w2, ids=(0, 5, 6, 7))), place=1)
    assert [f.code for f in prove(wrong).findings] == ["law-source"]


def test_what_the_model_s_own_parameters_leave_unread_is_noticed(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    (norm,) = plan.top[0]["norm.weight"]
    constant = replace(norm, pieces=(replace(norm.pieces[0], source=Fill((HIDDEN,), "BF16", 1.0)),))
    (finding,) = prove(replace(plan, top={0: {**plan.top[0], "norm.weight": (constant,)}})).findings
    assert finding.message == "norm/weight (top) is read by no parameter of any rank"


@pytest.mark.parametrize("preset", ["gpt-oss", "granite-moe"])
def test_stacked_experts_are_divided_and_dealt_out_like_single_ones(preset: str, tiny: Tiny) -> None:
    assert prove(plan_of(tiny, preset, 1, 2)).findings == ()
    sound = plan_of(tiny, preset, 1, 2, enable_expert_parallel=True)
    assert prove(sound).findings == ()
    name = next(c.spec.name for c in sound.composed[0, 1] if "experts.w2_" in c.spec.name)
    lost = broken(sound, name, pieces(*(moved(p, 0, -1) for c in sound.composed[0, 1] if c.spec.name == name
                                        for p in c.pieces)), place=1)  # fmt: skip
    assert [f.code for f in prove(lost).findings] == ["law-source"]


def test_one_redundant_expert_is_the_first(tiny: Tiny) -> None:
    layout = {"data_parallel_size": 3, "enable_expert_parallel": True, "num_redundant_experts": 1}
    assert prove(plan_of(tiny, "qwen3-moe", **layout)).findings == ()
    assert prove(plan_of(tiny, "granite-moe", **layout)).findings == ()


def test_experts_dealt_in_turns_are_each_on_one_rank(tiny: Tiny) -> None:
    layout = {"enable_expert_parallel": True, "expert_placement": "round_robin"}
    sound = plan_of(tiny, "qwen3-moe", 1, 2, **layout)
    w2 = piece_of(sound, "experts.w2_weight")
    assert w2.ids == (0, 2, 4, 6)
    assert prove(sound).findings == ()
    wrong = broken(sound, "experts.w2_weight", pieces(replace(w2, ids=(0, 2, 4, 5))))
    assert [f.code for f in prove(wrong).findings] == ["law-source"]


def test_two_experts_may_be_stored_in_two_formats(tmp_path: Path) -> None:
    write_tiny(PRESETS["qwen3-moe"], tmp_path, overrides={"num_experts": 2}, num_shards=1)
    damaged = Damaged(tmp_path)
    name = "model.layers.1.mlp.experts.1.down_proj.weight"
    damaged.replace("model.safetensors", {name: damaged.shards["model.safetensors"][name].float()})
    proof = prove(build_plan(open_checkpoint(tmp_path), ParallelLayout(2, 2)))
    assert [(f.code, f.tensor) for f in proof.findings] == [("dtype-noted", name)]


def test_scales_of_a_cut_inside_a_block_are_read_by_both_neighbours_and_counted(tiny: Tiny) -> None:
    sound = plan_of(tiny, "glm-5.1-fp8", 1, 2)
    assert prove(sound).findings == ()  # rows 160 of 320 lie inside the second block of 128
    scale = piece_of(sound, "q_b_proj.weight_scale_inv", place=1)
    assert isinstance(scale.source, Stored)
    assert scale.source.box[0] == (1, 3)
    lost = broken(sound, "q_b_proj.weight_scale_inv", pieces(moved(scale, 0, -1)), place=1)
    (finding,) = prove(lost).findings
    assert "attn.q_b/weight_scale_inv" in finding.message
    assert finding.message.endswith("are read [0] times, declared [1]")


def test_the_defect_of_one_part_is_not_said_again_of_the_parts_it_is_fused_with(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    bound = plan.classes[0]
    forms = {key: form for key, form in bound.forms.items() if key != "attn.k"}
    defective = replace(plan, classes=(replace(bound, forms=forms),))
    without = broken(defective, "qkv_proj.weight", pieces())
    assert [f.code for f in prove(without).findings] == ["law-destination"]


# Casts ----------------------------------------------------------------------------------------------------------------


def cast(plan: Plan, dtype: str, reason: str | None) -> list[Finding]:
    name = "input_layernorm.weight"
    norm = piece_of(plan, name)
    made = replace(norm, source=Cast(norm.source, dtype, reason))
    return [f for f in prove(broken(plan, name, pieces(made))).findings if f.code == "law-cast"]


def test_a_cast_that_narrows_needs_a_reason(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    (finding,) = cast(plan, "F16", None)
    assert (finding.severity, finding.param) == ("error", "{block}.input_layernorm.weight")
    assert finding.message == "BF16 would be narrowed to F16 without a reason"
    assert cast(plan, "F16", "--dtype F16") == []


def test_a_cast_that_widens_needs_none(tiny: Tiny) -> None:
    assert cast(plan_of(tiny), "F32", None) == []


def test_a_cast_under_a_cast_is_looked_at(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    norm = piece_of(plan, "input_layernorm.weight")
    inner = replace(norm, source=Cast(Cast(norm.source, "F16"), "F32"))
    findings = prove(broken(plan, "input_layernorm.weight", pieces(inner))).findings
    assert [f.message for f in findings] == ["BF16 would be narrowed to F16 without a reason"]
