"""The byte law, the capacity, and each rank's figures, on numbers that can be added by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.plan.waivers import Waiver
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.plan.breach import plan_of

# llama, tiny: 4 layers, hidden 128, intermediate 256, 8 heads and 4 key/value heads of 16, vocabulary 320, BF16
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY, BF16 = 4, 128, 256, 320, 2
LAYER = (8 + 4 + 4 + 8) * 16 * HIDDEN + 3 * INTERMEDIATE * HIDDEN  # elements of a layer beside its two norms


def test_key_value_heads_fewer_than_ranks_are_declared_to_repeat(tiny: Tiny) -> None:
    plan = plan_of(tiny, "llama", 1, 8)  # 4 key/value heads: each on two ranks
    proof = prove(plan)
    assert proof.findings == ()
    kv = 2 * LAYERS * 4 * 16 * HIDDEN * BF16
    norms = (2 * LAYERS + 1) * HIDDEN * BF16
    assert sum(r.replica_bytes for r in proof.ranks) == kv + 7 * norms


def test_one_key_value_head_is_on_every_rank_whatever_their_number(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 1, "intermediate_size": 192, "vocab_size": 384}
    write_tiny(PRESETS["llama"], tmp_path / "one", overrides=sizes)
    proof = prove(build_plan(open_checkpoint(tmp_path / "one"), ParallelLayout(1, 3)))
    assert proof.findings == ()
    kv, norms = 2 * LAYERS * 16 * HIDDEN * BF16, (2 * LAYERS + 1) * HIDDEN * BF16
    assert sum(r.replica_bytes for r in proof.ranks) == 2 * (kv + norms)


def test_redundant_experts_are_declared_to_be_held_twice(tiny: Tiny) -> None:
    plan = plan_of(tiny, "qwen3-moe", 1, 2, enable_expert_parallel=True, num_redundant_experts=2)
    proof = prove(plan)
    assert proof.findings == ()
    without = prove(plan_of(tiny, "qwen3-moe", 1, 2, enable_expert_parallel=True))
    expert = 3 * 64 * HIDDEN * BF16
    more = sum(r.replica_bytes for r in proof.ranks) - sum(r.replica_bytes for r in without.ranks)
    assert more == 2 * LAYERS * expert


@pytest.mark.parametrize("waived", [-1, 1])
def test_a_waiver_of_one_byte_too_many_or_too_few_breaks_the_byte_law(waived: int, tiny: Tiny) -> None:
    plan = plan_of(tiny)
    payload = plan.checkpoint.table.payload_bytes
    (finding,) = prove(replace(plan, waivers=(Waiver("nothing", 1, waived),))).findings
    assert (finding.code, finding.severity) == ("law-bytes", "error")
    assert f"need {payload:,} bytes" in finding.message
    assert finding.message.endswith(f"= {payload - waived:,}")


def test_the_byte_law_is_silent_where_an_error_explains_the_difference(tiny: Tiny) -> None:
    plan = plan_of(tiny)
    noted = Finding("dtype-noted", "note", "a note")
    warned = Finding("index-total-size", "warning", "a warning")
    wrong = Finding("tensor-missing", "error", "an error")
    known = prove(replace(plan, waivers=(Waiver("nothing", 1, 1),), findings=(noted, warned, wrong)))
    assert known.findings == (wrong, warned, noted)  # the gravest first
    assert not known.proven
    assert [f.code for f in prove(replace(plan, waivers=(Waiver("nothing", 1, 1),), findings=(noted,))).findings] == [
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
    assert finding.message.startswith(f"rank 1 needs {last / 2**10:.1f} KiB")
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
    one, two = prove(plan_of(tiny, "smollm2")), prove(plan_of(tiny, "smollm2", 2))
    assert one.findings == two.findings == ()
    assert [r.replica_bytes for r in one.ranks] == [0]
    assert [r.replica_bytes for r in two.ranks] == [0, VOCABULARY * 96 * BF16]


def test_a_draft_layer_counts_on_the_last_stage(tiny: Tiny) -> None:
    plan = plan_of(tiny, "glm-5.1-fp8", 2, num_draft_layers=1)
    proof = prove(plan)
    assert proof.findings == ()
    assert [r.draft_layers for r in proof.ranks] == [(), (len(plan.schema.layers),)]
    embedding = plan.config["vocab_size"] * plan.config["hidden_size"] * BF16
    assert [r.replica_bytes for r in proof.ranks] == [0, embedding]
    without = prove(plan_of(tiny, "glm-5.1-fp8", 2))
    assert without.findings == ()
    assert [r.replica_bytes for r in without.ranks] == [0, 0]


def test_a_draft_with_an_embedding_and_a_head_of_its_own_needs_none_of_the_model_s(tiny: Tiny) -> None:
    proof = prove(plan_of(tiny, "deepseek-v3", 2, num_draft_layers=1))
    assert proof.findings == ()
    assert [r.replica_bytes for r in proof.ranks] == [0, 0]


def test_the_head_of_a_draft_of_a_tied_model_is_the_embedding(tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path / "tied", overrides={"tie_word_embeddings": True})
    checkpoint = open_checkpoint(tmp_path / "tied")
    one, two = (prove(build_plan(checkpoint, ParallelLayout(pp, num_draft_layers=1))) for pp in (1, 2))
    assert one.findings == two.findings == ()
    embedding = one.plan.config["vocab_size"] * one.plan.config["hidden_size"] * BF16
    assert [r.replica_bytes for r in one.ranks] == [0]
    assert [r.replica_bytes for r in two.ranks] == [0, embedding]


def test_rows_of_a_vocabulary_that_does_not_divide_are_on_one_rank_each(tmp_path: Path) -> None:
    write_tiny(PRESETS["smollm2"], tmp_path / "odd", overrides={"vocab_size": 331, "intermediate_size": 192})
    checkpoint = open_checkpoint(tmp_path / "odd")
    proof = prove(build_plan(checkpoint, ParallelLayout(1, 3)))
    assert proof.findings == ()
    assert sum(r.replica_bytes for r in proof.ranks) == 2 * (2 * LAYERS + 1) * 96 * BF16  # the norms
    both = prove(build_plan(checkpoint, ParallelLayout(1, 3, data_parallel_size=2)))
    assert both.findings == ()
    assert both.ranks[3].replica_bytes == both.ranks[3].needed_bytes


def test_parts_of_a_packed_tensor_share_what_cannot_be_divided_and_each_read_counts(tiny: Tiny) -> None:
    proof = prove(plan_of(tiny, "phi-4-gptq"))
    assert proof.findings == ()
    config = proof.plan.config
    qkv, gate_up = 2 * 4 * config["hidden_size"], 1 * 4 * config["hidden_size"]  # g_idx (I32): once more for k, v; up
    assert [r.replica_bytes for r in proof.ranks] == [config["num_hidden_layers"] * (qkv + gate_up)]
    assert prove(plan_of(tiny, "phi-4-gptq", 1, 2)).findings == ()
