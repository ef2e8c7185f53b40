"""A plan broken in one piece: each law notices its own breach. And the figures, on numbers that can be added by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from loadmaster.architectures.algebra import Cast, Fill, Stored
from loadmaster.architectures.lower import Piece
from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, Proof, build_plan, prove
from loadmaster.plan.bind import Waiver
from loadmaster.plan.compose import Composed
from tests.conftest import Tiny

Breach = Callable[[Composed], Composed]

# llama, tiny: 4 layers, hidden 128, intermediate 256, 8 heads and 4 key/value heads of 16, vocabulary 320, BF16
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY, BF16 = 4, 128, 256, 320, 2
LAYER = (8 + 4 + 4 + 8) * 16 * HIDDEN + 3 * INTERMEDIATE * HIDDEN  # elements of a layer beside its two norms


def plan_of(tiny: Tiny, preset: str = "llama", *sizes: int, **layout: object) -> Plan:
    return build_plan(open_checkpoint(tiny(preset)), ParallelLayout(*sizes, **layout))  # type: ignore[arg-type]


def broken(plan: Plan, name: str, breach: Breach, place: int = 0) -> Plan:
    """The plan with one parameter of its first class changed, at one place of a stage."""
    made = tuple(breach(c) if c.spec.name.endswith(name) else c for c in plan.composed[0, place])
    assert made != plan.composed[0, place]
    return replace(plan, composed={**plan.composed, (0, place): made})


def pieces(*changed: Piece) -> Breach:
    return lambda c: replace(c, pieces=changed)


def said(proof: Proof) -> list[tuple[str, str | None]]:
    return [(f.code, f.param) for f in proof.findings]


def piece_of(plan: Plan, name: str, number: int = 0, place: int = 0) -> Piece:
    return next(c.pieces[number] for c in plan.composed[0, place] if c.spec.name.endswith(name))


def moved(piece: Piece, dim: int, by: int) -> Piece:
    """A piece that reads its box elsewhere in the same tensor."""
    assert isinstance(piece.source, Stored)
    box = list(piece.source.box)
    box[dim] = (box[dim][0] + by, box[dim][1] + by)
    return replace(piece, source=replace(piece.source, box=tuple(box)))


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
    assert said(prove(plan)) == [("law-destination", "{block}.self_attn.qkv_proj.weight")]


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
    assert said(prove(replace(plan, top=top))) == [("law-destination", "norm.weight")]


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


def test_key_value_heads_fewer_than_ranks_are_declared_to_repeat(tiny: Tiny) -> None:
    plan = plan_of(tiny, "llama", 1, 8)  # 4 key/value heads: each on two ranks
    proof = prove(plan)
    assert proof.findings == ()
    kv = 2 * LAYERS * 4 * 16 * HIDDEN * BF16
    norms = (2 * LAYERS + 1) * HIDDEN * BF16
    assert sum(r.replica_bytes for r in proof.ranks) == kv + 7 * norms


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
    turned = broken(sound, "experts.w2_weight", pieces(replace(w2, ids=(7, 5, 6, 4))), place=1)
    assert prove(turned).findings == ()
    wrong = broken(sound, "experts.w2_weight", pieces(replace(w2, ids=(0, 5, 6, 7))), place=1)
    assert [f.code for f in prove(wrong).findings] == ["law-source"]


def test_redundant_experts_are_declared_to_be_held_twice(tiny: Tiny) -> None:
    plan = plan_of(tiny, "qwen3-moe", 1, 2, enable_expert_parallel=True, num_redundant_experts=2)
    proof = prove(plan)
    assert proof.findings == ()
    without = prove(plan_of(tiny, "qwen3-moe", 1, 2, enable_expert_parallel=True))
    expert = 3 * 64 * HIDDEN * BF16
    more = sum(r.replica_bytes for r in proof.ranks) - sum(r.replica_bytes for r in without.ranks)
    assert more == 2 * LAYERS * expert


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


# Bytes, capacity, figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waived", [-1, 1])
def test_a_waiver_of_one_byte_too_many_or_too_few_breaks_the_byte_law(waived: int, tiny: Tiny) -> None:
    plan = plan_of(tiny)
    payload = plan.checkpoint.table.payload_bytes
    binding = replace(plan.binding, waivers=(Waiver("nothing", 1, waived),))
    (finding,) = prove(replace(plan, binding=binding)).findings
    assert (finding.code, finding.severity) == ("law-bytes", "error")
    assert f"need {payload:,} bytes" in finding.message
    assert finding.message.endswith(f"= {payload - waived:,}")


def test_the_byte_law_is_silent_where_an_error_explains_the_difference(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    binding = replace(plan.binding, waivers=(Waiver("nothing", 1, 1),))
    noted = Finding("dtype-noted", "note", "a note")
    warned = Finding("index-total-size", "warning", "a warning")
    wrong = Finding("tensor-missing", "error", "an error")
    known = prove(replace(plan, binding=binding, findings=(noted, warned, wrong)))
    assert known.findings == (wrong, warned, noted)  # the gravest first
    assert not known.proven
    assert [f.code for f in prove(replace(plan, binding=binding, findings=(noted,))).findings] == [
        "law-bytes",
        "dtype-noted",
    ]
    assert prove(replace(plan, findings=(noted, warned))).proven


def test_a_rank_may_fill_its_capacity_and_not_a_byte_more(tiny: Tiny) -> None:
    plan = plan_of(tiny, "llama", 2)
    first, last = (r.resident_bytes for r in prove(plan).ranks)
    assert (first, last) == (
        (2 * (LAYER + 2 * HIDDEN) + VOCABULARY * HIDDEN) * BF16,
        (2 * (LAYER + 2 * HIDDEN) + VOCABULARY * HIDDEN + HIDDEN) * BF16,
    )
    assert prove(plan, capacity_bytes=last).proven
    (finding,) = prove(plan, capacity_bytes=last - 1).findings
    assert (finding.code, finding.ranks) == ("memory-capacity", (1,))
    (finding,) = prove(plan, capacity_bytes=first - 1).findings
    assert finding.ranks == (0, 1)
    assert finding.message.startswith("rank 1 needs 0.00 GiB")
    assert prove(plan, capacity_bytes=0).findings[0].code == "memory-capacity"


def test_each_rank_is_told_where_it_stands_and_what_it_repeats(tiny: Tiny) -> None:
    proof = prove(plan_of(tiny, "llama", 2, 2), staging_bytes=1000)
    assert proof.findings == ()
    norms = 2 * 2 * HIDDEN * BF16
    assert [(r.rank, r.pp_rank, r.tp_rank, r.dp_rank, r.layers, r.draft_layers) for r in proof.ranks] == [
        (0, 0, 0, 0, (0, 2), ()),
        (1, 0, 1, 0, (0, 2), ()),
        (2, 1, 0, 0, (2, 4), ()),
        (3, 1, 1, 0, (2, 4), ()),
    ]
    assert [r.replica_bytes for r in proof.ranks] == [0, norms, 0, norms + HIDDEN * BF16]
    assert [r.carries for r in proof.ranks] == [(), (), ("hidden_states",), ("hidden_states",)]
    half = (2 * LAYER + VOCABULARY * HIDDEN) // 2 * BF16
    assert [r.needed_bytes for r in proof.ranks] == [half + norms] * 2 + [half + norms + HIDDEN * BF16] * 2
    assert all(r.staging_bytes <= 1000 for r in proof.ranks)


def test_data_parallel_ranks_repeat_all_but_the_experts(tiny: Tiny) -> None:
    proof = prove(plan_of(tiny, "llama", data_parallel_size=2))
    assert [(r.dp_rank, r.replica_bytes) for r in proof.ranks] == [(0, 0), (1, proof.ranks[1].needed_bytes)]
    mixture = prove(plan_of(tiny, "qwen3-moe", data_parallel_size=2))
    experts = LAYERS * 8 * 3 * 64 * HIDDEN * BF16
    assert mixture.findings == ()
    assert mixture.ranks[1].replica_bytes == mixture.ranks[1].needed_bytes - experts // 2


def test_a_tied_embedding_is_on_two_stages_once_each_and_on_one_stage_once(tiny: Tiny) -> None:
    assert [r.replica_bytes for r in prove(plan_of(tiny, "smollm2")).ranks] == [0]
    embedding = VOCABULARY * 96 * BF16
    assert [r.replica_bytes for r in prove(plan_of(tiny, "smollm2", 2)).ranks] == [0, embedding]


def test_a_draft_layer_counts_on_the_last_stage(tiny: Tiny) -> None:
    plan = plan_of(tiny, "glm-5.1-fp8", 2, num_draft_layers=1)
    proof = prove(plan)
    assert proof.findings == ()
    assert [r.draft_layers for r in proof.ranks] == [(), (len(plan.schema.layers),)]
    embedding = plan.config["vocab_size"] * plan.config["hidden_size"] * BF16
    assert [r.replica_bytes for r in proof.ranks] == [0, embedding]


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
    bound = plan.binding.classes[0]
    forms = {key: form for key, form in bound.forms.items() if key != "attn.k"}
    defective = replace(plan, binding=replace(plan.binding, classes=(replace(bound, forms=forms),)))
    without = broken(defective, "qkv_proj.weight", pieces())
    assert [f.code for f in prove(without).findings] == ["law-destination"]
